"""The cloud tier: `python -m services.cloud`, or `uvicorn services.cloud.__main__:...` is not needed; see shared/service.py."""

from shared.service import serve

if __name__ == "__main__":
    serve("cloud")

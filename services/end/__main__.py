"""The end tier: `python -m services.end`, or `uvicorn services.end.__main__:...` is not needed; see shared/service.py."""

from shared.service import serve

if __name__ == "__main__":
    serve("end")

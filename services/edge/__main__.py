"""The edge tier: `python -m services.edge`, or `uvicorn services.edge.__main__:...` is not needed; see shared/service.py."""

from shared.service import serve

if __name__ == "__main__":
    serve("edge")

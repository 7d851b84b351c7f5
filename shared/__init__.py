"""What each step of a request does, in the order a request meets it. `docs/develop.md` has the map."""

__version__ = "0.1.0"

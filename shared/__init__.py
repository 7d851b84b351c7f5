"""What each step of a request does, in the order a request meets it. See README.md for the map."""

__version__ = "0.1.0"

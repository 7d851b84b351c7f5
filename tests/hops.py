"""A hop as a tier gives it, for tests that only look at a part of it."""

from shared.contracts import Hop


def a_hop(**others):
    """One at the edge, sure of its label; `others` are what a test changes."""
    plain = {
        "tier": "edge",
        "card": "tiny@0",
        "exit_layer": 2,
        "layers": 2,
        "label": "positive",
        "probabilities": {"negative": 0.25, "positive": 0.75},
        "confidence": 0.75,
        "offload_probability": 0.0,
        "words_in": 3,
        "truncated": False,
        "timings_ms": {"total": 1.5},
    }
    return Hop(**plain | others)

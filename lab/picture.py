"""Pictures without a screen, whose names are shown as they are: `$` in a policy's or file's name is no formula."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any:  # matplotlib has no types
    """matplotlib's pyplot, loaded when the first picture is drawn."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["text.parse_math"] = False
    from matplotlib import pyplot as plt

    return plt

"""Markdown tables, and figures with their intervals as the report writes them."""

from __future__ import annotations

from typing import Any


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def interval(estimate: list[float], factor: float = 100, digits: int = 1) -> str:
    """A difference with its interval, in points unless `factor` says otherwise."""
    value, low, high = (factor * part for part in estimate)
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def score(row: dict[str, Any], metric: str) -> str:
    """A score with its interval, times 100."""
    low, high = row[f"{metric}_ci95"]
    return f"{100 * row[metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def p_value(row: dict[str, Any]) -> str:
    """McNemar's p."""
    p = row["paired"]["mcnemar_p"]
    return "<.001" if p < 0.001 else f"{p:.3f}"[1:] if p < 1 else "1"


def share(value: float) -> str:
    """A relative change."""
    return f"{value:+.0%}"

"""Every setting of a tier with its value and its source, for `tierwise print-config`."""

from __future__ import annotations

import os

from rich.table import Table
from rich.text import Text

from shared.settings import PREFIX, Settings, load_settings


def table(tier: str) -> Table:
    """One row per setting; the source is the environment or the default."""
    settings = load_settings(tier)
    out = Table("variable", "value", "source", "meaning", show_edge=False, pad_edge=False)
    for name, field in Settings.model_fields.items():
        value, variable = getattr(settings, name), f"{PREFIX}{name.upper()}"
        shown = ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        source = "environment" if variable in os.environ else "default"
        out.add_row(variable, Text(shown), source, field.description)
    return out

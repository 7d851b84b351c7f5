"""The papers' own numbers, as printed: `published.yaml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def published(table: str) -> dict[str, Any]:
    """One table's numbers, with the source that they come from."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())[table]

"""Every setting of a tier with its value and its source, for `tierwise print-config` and the documentation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from typing import Literal, NamedTuple, get_args, get_origin

from rich.console import Group
from rich.text import Text

from lab.console import sheet
from lab.live.stack import role_of
from shared.model.bundle import load_bundle
from shared.policies import build, named
from shared.web.settings import PREFIX, Settings, load_settings, unread_env_file


class Row(NamedTuple):
    """One setting."""

    variable: str
    value: str
    source: str
    meaning: str


def rows(tier: str) -> Iterator[Row]:
    """Every setting of a tier, checked as the tier itself checks it at start.

    Raises:
        BadSetting, UnknownPolicy: what would stop the tier.
    """
    settings = load_settings(role_of(tier))
    bundle = load_bundle(settings.bundle)
    settings.check(bundle.order)
    build(named(settings.policy), bundle.order, bundle.card.policies)
    for name, field in Settings.model_fields.items():
        value, variable = getattr(settings, name), f"{PREFIX}{name.upper()}"
        shown = _shown(value)
        choices = _choices(field.annotation)
        meaning = (field.description or "") + (f": {', '.join(choices)}" if choices else "")
        yield Row(variable, shown, _source(variable), meaning)
    cache = "TIERWISE_CACHE_DIR"
    yield Row(
        cache,
        os.environ.get(cache, "~/.cache/tierwise"),
        _source(cache),
        "where base weights, built layers and recordings are kept",
    )


def _shown(value: object) -> str:
    """A value as the environment would name it; empty: not set."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if isinstance(value, dict):
        return ",".join(f"{key}={rest}" for key, rest in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _choices(annotation: object) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return []


def _source(variable: str) -> str:
    return "environment" if variable in os.environ else "default"


def table(tier: str) -> Group:
    """`rows` for a screen, and a line on a `.env` that is not read."""
    out = sheet(None, *Row._fields)
    for row in rows(tier):
        out.add_row(row.variable, Text(row.value), row.source, Text(row.meaning))
    unread = unread_env_file()
    return Group(out, *([Text(f"note: {unread}", no_wrap=True, overflow="ignore")] if unread else []))

"""Policies as people write them on a command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from shared.errors import UnknownPolicy
from shared.policies import named


def shown(text: str) -> str:
    """What a table calls it: a file by its name.

    >>> shown("results/point-0.9.policy.json")
    'point-0.9'
    """
    return Path(text).name.removesuffix(".json").removesuffix(".policy") if text.endswith(".json") else text


def parse_policy(text: str) -> str | dict[str, Any]:
    """`NAME`, `FILE.json`, or `NAME:key=value,key=value` with JSON values or bare words, as a policy spec.

    >>> parse_policy("collaborative:theta=0,weighting=last")
    {'name': 'collaborative', 'theta': 0, 'weighting': 'last'}

    Raises:
        UnknownPolicy: neither.
    """
    if text.endswith(".json"):
        return named(text)
    name, colon, rest = text.partition(":")
    if not colon:
        return name
    spec: dict[str, Any] = {"name": name}
    for part in re.split(r",(?![^{]*\})", rest):  # a comma inside {} belongs to a value
        key, equals, value = part.partition("=")
        if not equals or key.strip() in spec:
            raise UnknownPolicy(f"policy {text!r}: expected NAME:key=value,key=value, each key once")
        try:
            spec[key.strip()] = json.loads(value, parse_constant=str)  # NaN and Infinity are not JSON
        except ValueError:
            spec[key.strip()] = value
    return spec

"""Live times to stand beside modelled ones: a bench's report, or a tier's ledger."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from services.lab.data import digest
from services.lab.replay.walk import Replay
from shared.errors import BadSetting
from shared.ledger import entries


def live_ms(path: Path, replay: Replay, name: str, spec: dict[str, Any], links: str) -> list[tuple[float, int]]:
    """Live mean ms of a policy, and of how many texts, for each run in the file; empty if the policy is not in it.

    Raises:
        BadSetting: not such a file, or a bench of other texts or over other links: nothing to compare with.
    """
    try:
        return _ledger(path, replay, spec) if path.suffix == ".jsonl" else _bench(path, replay, name, links)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSetting(f"{path}: neither a bench's .json nor a ledger's .jsonl ({error!r})") from error


def _bench(path: Path, replay: Replay, name: str, links: str) -> list[tuple[float, int]]:
    said = json.loads(path.read_text())
    if said["first_tier"]["bundle"] != replay.bundle.name:
        return []
    if said["data_sha256"] != digest(list(replay.examples)):
        raise BadSetting(f"{path}: measured on other texts: replay the same (--data, --n, --split, --exclude-split)")
    access, _, backbone = links.replace(",", "/").partition("/")
    for link in said["first_tier"]["links"]:
        modelled = "+".join([access, *[backbone] * (replay.order.index(link["to"]) - 1)])
        if link["profile"] not in (None, modelled):
            raise BadSetting(
                f"{path}: measured over {link['profile']} to the {link['to']}, not {modelled}: name its --links"
            )
    policy = said["policies"].get(name)
    return [(policy["latency_ms"]["mean"], said["n"])] if policy else []


def _ledger(path: Path, replay: Replay, spec: dict[str, Any]) -> list[tuple[float, int]]:
    """Totals of whole, undisturbed requests of one text."""
    model, texts = f"{replay.bundle.name}@{replay.bundle.digest[:12]}", set(replay.corpus.keys)
    lines = list(entries(path))
    texts_of = Counter(line["id"] for line in lines)
    return [
        (line["timings_ms"]["total"], 1)
        for line in lines
        if line["model"] == model
        and line["text_sha256"] in texts
        and texts_of[line["id"]] == 1
        and not line["degraded"]
        and line["max_tier"] is None
        and _is(line["policy"], spec)
    ]


def _is(recorded: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Whether a line is of this policy; one that learns has an arm in every line."""
    return all(recorded.get(key) == value for key, value in spec.items() if key != "arm" or value is not None)

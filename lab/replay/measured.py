"""Live times to stand beside modelled ones: a bench's report, or a tier's ledger."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lab.data.examples import digest
from lab.replay.trial import links_of
from lab.replay.walk import Replay
from shared.errors import BadSetting
from shared.policies import spec_of
from shared.web.ledger import entries


def live_ms(path: Path, replay: Replay, spec: dict[str, Any], links: str) -> list[tuple[float, int]]:
    """Live mean ms of a policy, and of how many texts, for each run in the file; empty if the policy is not in it.

    Raises:
        BadSetting: not such a file, or a bench of other texts or over other links: nothing to compare with.
    """
    kind, read = ("ledger's .jsonl", _ledger) if path.suffix == ".jsonl" else ("bench's .json", _bench)
    try:
        return read(path, replay, spec, links)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSetting(f"{path}: not a {kind} ({error!r})") from error


def _bench(path: Path, replay: Replay, spec: dict[str, Any], links: str) -> list[tuple[float, int]]:
    """The policy's mean; none where the bench ran another bundle or not this policy."""
    report = json.loads(path.read_text())
    n, sent, first, policies = report["n"], report["data_sha256"], report["first_tier"], report["policies"]
    if first["bundle"] != replay.bundle.name:
        return []
    if n != len(replay.examples) or sent != digest(list(replay.examples)):
        raise BadSetting(f"{path}: measured on other texts: name the same (--data, --n, --split, --exclude-split)")
    modelled = links_of(replay.bundle, links)
    for link in first["links"]:
        expected, live = modelled[replay.order[0], link["to"]].name, link["profile"]
        if live not in (None, expected):
            raise BadSetting(f"{path}: measured over {live} to the {link['to']}, not {expected}: name its --links")
    asked = [figures for figures in policies.values() if figures["asked"] is not None]  # less whole models
    found = [f["latency_ms"]["mean"] for f in asked if spec_of(replay.policy(f["asked"])) == spec]
    return [(float(ms), n) for ms in found[:1]]


def _ledger(path: Path, replay: Replay, spec: dict[str, Any], _: str) -> list[tuple[float, int]]:
    """Totals of whole, undisturbed requests of one text."""
    model, texts = replay.bundle.card_name, set(replay.corpus.keys)
    lines = list(entries(path))
    texts_of = Counter(line["id"] for line in lines)
    return [
        (line["timings_ms"]["total"], 1)
        for line in lines
        if line["model"].split()[0] == model
        and line["text_sha256"] in texts
        and texts_of[line["id"]] == 1
        and not line["degraded"]
        and line["max_tier"] is None
        and _is(line["policy"], spec)
    ]


def _is(recorded: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Whether a line is of this policy; one that learns has an arm in every line."""
    return all(recorded.get(key) == value for key, value in spec.items() if key != "arm" or value is not None)

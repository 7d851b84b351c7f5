"""`tierwise check-states`: what going on from a state costs in answers, and where it is the faster way.

    agreement   measured: real texts run whole and from packed states, after the layers that the other tiers have
    ways        modelled: each link profile, three lengths, each pair of neighbours that share their network; times of
                layers as measured on this machine, rates as the profiles say, texts as long as these are a token

Left out: pruning, the queue, and what both ways take alike (round trip, tokenizing, the answer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lab.console import progress, sheet
from lab.data.examples import Example, digest
from lab.live.bench_report import cpu
from lab.outputs import REPLACED, write_json
from lab.replay.profile import Table, measure_table
from lab.replay.recorder import Kernel, source_of
from lab.stats import wilson
from shared.errors import BadSetting, UnreadableText
from shared.links.profile import profile, profile_names
from shared.model.bundle import Bundle
from shared.model.classifier import Classifier
from shared.model.encoder import ExitTrace
from shared.model.state import Form, Segment, pack, packed_bytes, unpack
from shared.model.words import Encoded
from shared.pipeline.carry import Costs, costs_of

LENGTHS = (32, 128)  # tokens, and as many as the receiver reads


@dataclass
class Agreement:
    """Texts that went on from a form of state after a layer, beside their whole runs."""

    form: Form
    after: int
    texts: int = 0
    same: int = 0  # labels of the last exit
    same_everywhere: int = 0  # labels of every exit behind that layer
    gaps: list[float] = field(default_factory=list)  # each text's largest

    def add(self, whole: ExitTrace, gone_on: ExitTrace) -> None:
        """Take in one text's exits."""
        behind = slice(self.after, None)
        equal = whole.logits[behind].argmax(-1) == gone_on.logits[behind].argmax(-1)
        self.texts += 1
        self.same += bool(equal[-1])
        self.same_everywhere += bool(equal.all())
        self.gaps.append(float(np.abs(whole.logits - gone_on.logits).max()))

    def row(self) -> dict[str, Any]:
        """For people and for JSON."""
        low, high = wilson(self.same, self.texts)
        return {
            "form": self.form.value,
            "after_layer": self.after,
            "n": self.texts,
            "same_label": [self.same / self.texts, low, high],
            "same_at_every_exit": self.same_everywhere / self.texts,
            "largest_logit_difference": max(self.gaps),
            "p99_logit_difference": float(np.quantile(self.gaps, 0.99)),
        }


def agreement(
    classifier: Classifier, texts: Iterator[Encoded], cuts: Sequence[int], forms: Sequence[Form]
) -> list[Agreement]:
    """Run texts whole, and from their packed states after each cut."""
    found = [Agreement(form, cut) for cut in cuts for form in forms]
    segment = classifier.segment
    for text in texts:
        [whole] = classifier.run([text], None, every_exit=True)
        states = {cut: classifier.run([text], None, until=cut, states=True)[0].state for cut in cuts}
        for each in found:
            state = states[each.after]
            assert state is not None
            sent = unpack(pack(state, segment, each.form), segment)
            [gone_on] = classifier.run([sent], None, every_exit=True)
            each.add(whole, gone_on)
    return found


def neighbours(bundle: Bundle) -> list[tuple[str, str]]:
    """Tiers and the next ones, where these go on with more layers of the same network."""
    layers = {tier: model.layers for tier, model in bundle.tiers.items()}
    return [(a, b) for a, b in pairwise(bundle.order) if bundle.shares(a, b) and layers[a] < layers[b]]


def ways(bundle: Bundle, segment: Segment, table: Table, token_bytes: float, form: Form) -> list[dict[str, Any]]:
    """Both ways over every profile, for three lengths and each pair of neighbours: milliseconds, and the choice."""
    found = []
    for here, there in neighbours(bundle):
        done, layers = bundle.tiers[here].layers, bundle.tiers[there].layers
        for tokens in (*(length for length in LENGTHS if length < segment.max_tokens), segment.max_tokens):
            ran = [float(np.interp(tokens, table.lengths, table.infer[Kernel.PLAIN][n - 1])) for n in (done, layers)]
            text_bytes = round(tokens * token_bytes)
            state_bytes = packed_bytes(segment, tokens, done, form)
            for name in profile_names():
                link = profile(name)
                if link.loss_ratio >= 1:
                    continue
                byte_s = 8 / link.rate_up_bps if link.rate_up_bps else 0.0
                costs = costs_of(text_bytes, text_bytes + state_bytes, byte_s, whole_s=ran[1], rest_s=ran[1] - ran[0])
                found.append(_way(f"{here} to {there}", name, tokens, (text_bytes, state_bytes), costs))
    return found


def _way(hop: str, link: str, tokens: int, sizes: tuple[int, int], costs: Costs) -> dict[str, Any]:
    """One row; the choice costs what the cheaper of both does."""
    text_ms, state_ms = (round(1e3 * seconds, 3) for seconds in (costs.text_s, costs.state_s))
    return {
        "hop": hop,
        "link": link,
        "tokens": tokens,
        "text_bytes": sizes[0],
        "state_bytes": sizes[1],
        "text_ms": text_ms,
        "state_ms": state_ms,
        "choice": costs.cheaper.value,
        "saved_ms": round(abs(text_ms - state_ms), 3),  # beside the other way for all
    }


def run(
    bundle: Bundle, examples: Sequence[Example], form: Form, threads: int, out: Path, console: Console, *, anew: bool
) -> None:
    """Measure, print both tables, write OUT.json.

    Raises:
        BadSetting: no two neighbours of the bundle share a network, or no text can be read.
    """
    if not (pairs := neighbours(bundle)):
        raise BadSetting(f"{bundle.name}: no tier goes on with more layers of the one before it; try split-imdb")
    source = source_of(bundle, pairs[-1][1])
    table = measure_table(source, threads, console, anew=anew)
    classifier = source.load(threads)
    texts = [encoded for example in examples if (encoded := _encoded(classifier, example)) is not None]
    if not texts:
        raise BadSetting("none of the texts can be read")
    with progress(console, transient=True) as bar:
        cuts = [bundle.tiers[tier].layers for tier, _ in pairs]
        shown = bar.track(texts, description=f"{bundle.name}, states")
        found = [each.row() for each in agreement(classifier, iter(shown), cuts, [Form.FP16, Form.INT8])]
    token_bytes = _token_bytes(texts)
    modelled = ways(bundle, classifier.segment, table, token_bytes, form)
    report = {
        "bundle": bundle.card_name,
        "engine": classifier.runs_on,
        "hardware": cpu(),
        "threads": threads,
        "data_sha256": digest(list(examples)),
        "bytes_a_token": round(token_bytes, 3),
        "form": form.value,
        "spread": table.spread,
        "agreement": found,
        "ways_modelled": modelled,
    }
    _print(report, console)
    replaced = write_json(out.with_name(f"{out.name}.json"), report)
    console.print(f"written: {out}.json{REPLACED if replaced else ''}", highlight=False)


def _encoded(classifier: Classifier, example: Example) -> Encoded | None:
    try:
        return classifier.encode(example.text, example.pair)
    except UnreadableText:
        return None


def _token_bytes(texts: Sequence[Encoded]) -> float:
    """Bytes of text for each token that is read of it."""
    sizes = [sum(len(text.words[word].encode()) + 1 for word in {*text.word_of} - {-1}) for text in texts]
    return sum(sizes) / sum(len(text.ids) for text in texts)


def _print(report: dict[str, Any], console: Console) -> None:
    columns = ("after layer", "texts", "same label", "same at every exit", "largest logit difference")
    found = sheet("going on from states, beside whole runs", "state", *columns, words=["state"])
    for row in report["agreement"]:
        same, low, high = row["same_label"]
        shares = f"{same:.2%} [{low:.2%}, {high:.2%}]"
        cells = (row["form"], str(row["after_layer"]), str(row["n"]), shares, f"{row['same_at_every_exit']:.2%}")
        found.add_row(*cells, f"{row['largest_logit_difference']:.4f}")
    console.print(found)
    title = "modelled, from measured layers and the profiles' rates, without what both ways take alike"
    columns = ("tokens", "text, ms", f"state ({report['form']}), ms", "choice", "saves, ms")
    chosen = sheet(title, "hop", "link", *columns, words=["hop", "link", "choice"])
    for row in report["ways_modelled"]:
        times = [f"{row[key]:.1f}" for key in ("text_ms", "state_ms")]
        chosen.add_row(row["hop"], row["link"], str(row["tokens"]), *times, row["choice"], f"{row['saved_ms']:.1f}")
    console.print(chosen)

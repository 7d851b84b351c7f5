"""Bytes of the bodies that a run put on its links, from bodies of the contract's own making.

Requests are exact for ids of ours (32 characters); answers are as long as a typical one: the digits of times differ.
"""

from __future__ import annotations

import numpy as np

from lab.replay.answers import visit
from lab.replay.run import NONE, Run
from lab.replay.walk import Replay
from shared.contracts import Hop, HopTiming, InferredRow, InferRequest, InferResponse, LinkUse, TextPair
from shared.pipeline.hops import carried

_ID, _CALL = "0" * 32, "0" * 16  # a request id of ours, and the id of a call between tiers
_MS: dict[HopTiming, float] = {"tokenize": 0.512, "queue": 0.213, "infer": 75.123, "prune": 0.012, "total": 76.123}


class Sizes:
    """Of one bundle."""

    def __init__(self, replay: Replay) -> None:
        self._replay, self._order, self._seed = replay, replay.order, replay.seed
        self._requests: dict[tuple[str, str | None], int] = {}
        hops = [self._hop(replay, at) for at in range(len(replay.order))]
        self._hops = [len(hop.model_dump_json(by_alias=True)) + 1 for hop in hops]
        self._links = [_link(a, b) for a, b in zip(("client", *self._order), self._order, strict=False)]
        self._envelope = (
            len(InferResponse(call=_CALL, rows=[InferredRow(index=0, hops=[])], total_ms=76.123).model_dump_json()) - 1
        )

    def _hop(self, replay: Replay, at: int) -> Hop:
        last, labels = at == len(self._order) - 1, replay.bundle.labels
        share = round(1 / 3, 6)
        return Hop(
            tier=self._order[at],
            card=replay.bundle.card_name,
            exit_layer=6,
            layers=replay.stations[at].layers,
            label=labels[-1],
            probabilities=dict.fromkeys(labels, share),
            confidence=share,
            offload_probability=0.0 if last else share,
            draw=2 / 3,
            offloaded_to=None if last else self._order[at + 1],
            words_in=100,
            words_kept=None if last else 100,
            truncated=False,
            timings_ms=_MS,
        )

    def requests(self, run: Run, link: tuple[int, int], rows: np.ndarray) -> np.ndarray:
        """Bytes of the requests that carry these rows over a link."""
        return self._requests_of(run, link, rows, run.carried[link], run.target[link])

    def in_vain(self, run: Run, link: tuple[int, int], rows: np.ndarray) -> np.ndarray:
        """The same of requests that were sent ahead and cancelled; less may have left."""
        return self._requests_of(run, link, rows, *run.vain[link])

    def _requests_of(
        self, run: Run, link: tuple[int, int], rows: np.ndarray, numbers: np.ndarray, targets: np.ndarray
    ) -> np.ndarray:
        target = targets[rows]
        bare = {code: self._bare(run, code) for code in np.unique(target).tolist()}
        seeds = [len(f"{self._seed}-{row}") for row in rows.tolist()]
        texts = run.json_bytes[numbers[rows]]
        return texts + seeds + [bare[code] for code in target.tolist()] + self._visits(run, link[0], rows, target)

    def _visits(self, run: Run, here: int, rows: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Bytes of what the tiers up to `here` said, which travels where the policy asks for it."""
        size = np.zeros(len(rows), dtype=np.int64)
        if not run.bound.carries_visits:
            return size
        stations = self._replay.stations_of(run)
        for at in np.flatnonzero(target == NONE).tolist():
            ran = np.flatnonzero(run.ran[: here + 1, rows[at]]).tolist()
            said = [visit(run, stations, tier, rows[at], every_exit=False) for tier in ran]
            parts = [len(one.model_dump_json()) for one in carried(self._replay.bundle, said)]
            size[at] = len(',"visits":[[]]') + sum(parts) + max(0, len(parts) - 1)
        return size

    def _bare(self, run: Run, code: int) -> int:
        """A request without its text and seed."""
        target = None if code == NONE else self._order[code]
        spec = self._replay.travelling(run.bound)
        key = (str(spec), target)
        if key not in self._requests:
            texts = [TextPair(text="x")]
            body = InferRequest(
                request_id=_ID, call=_CALL, seed="0", indices=[0], texts=texts, policy=spec, target=target
            )
            self._requests[key] = len(body.model_dump_json()) - len('"x"') - len("null") - 1
        return self._requests[key]

    def answers(self, run: Run, callee: int, rows: np.ndarray) -> np.ndarray:
        """Bytes of the answers that come back from a tier: its own hop, and those of the tiers behind it."""
        size = np.full(len(rows), self._envelope)
        for at in range(callee, len(run.tiers)):
            size += run.ran[at, rows] * (self._hops[at] + (self._links[at] if at > callee else 0))
        return size


def _link(source: str, target: str) -> int:
    """A link on record takes this much more than its absence."""
    use = LinkUse(
        source=source,
        target=target,
        backend="simulated",
        profile="metro",
        request_bytes=1500,
        response_bytes=600,
        ms=25.123,
    )
    return len(use.model_dump_json(by_alias=True)) - len("null")

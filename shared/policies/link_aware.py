"""Policies that see the link they send over, and the queues at both of its ends.

network-aware [ours]: a text goes where the gain is worth most more than it costs, and stays where nothing is

    value * G(C)  >  T        G: expected gain in accuracy of that tier over this one, by the confidence C
                              T: ms on the link + ms of work that waits there + ms of compute there + ms per joule * J

    G is measured on validation texts, by confidence (`lab/fit/gains.py`). The link is a line, fixed + bytes * per byte,
    fitted to the calls of late (`shared/links/measured.py`). A call that is out for longer than T stands for all. J is
    modelled. What is measured counts as unchanged while it stays within `band` of what it was: so a link that is just
    worth it does not flap. The tier that is asked decides anew, so what it may add is left out of G.

buffer-threshold: alpha = theta1 * q + theta2, then eq. 7-8 of `collaborative`   [C:Div290/Buffer_based_threshold]

    theta2 is `offload_threshold`, theta1 is `slope`. There q counts samples, and a bandit learns both thetas; here q is
    in seconds, which tiers of different speed share, and both are parameters.

mdi-exit: Colocrese et al. 2024 (arXiv 2408.05247), algorithms 1 and 2 [R: reconstructed], between tiers

    before any layer runs   send with probability min(1, I_n G_n / (D_nm + I_m G_m))   G: service time; D: link's delay
    after inference         answer where C >= T_e, else the next tier goes on

    There the workers hold parts of one network, and a text has its further layers anywhere; here each tier has a model
    of its own, so a text that is sent before is read by a deeper one. I_n G_n is the work that waits, in seconds. Left
    out: the output queue, whose length there decides whether to send at all, and both adaptations (algorithms 3 and 4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from shared.contracts import Rule
from shared.errors import UnknownPolicy
from shared.policies.base import STAY, Clues, Decision, Link, Ratio, Where
from shared.policies.collaborative import Collaborative
from shared.policies.reading import Reading

FRAME, WORD = 1800, 6  # bytes: both bodies without the text, a policy's gains in them; a word with its space
Gain = Annotated[float, Field(ge=-1, le=1)]
Seconds = Annotated[float, Field(ge=-3600, le=3600)]


def gain_at(confidences: list[float], gains: list[float], confidence: float) -> float:
    """The gain at a confidence: on the straight line between two known ones; outside, that of the nearest.

    >>> [gain_at([0.5, 1.0], [0.2, 0.0], confidence) for confidence in (0.4, 0.5, 0.75, 1.0)]
    [0.2, 0.2, 0.1, 0.0]
    """
    at = bisect_left(confidences, confidence)
    if at in (0, len(confidences)):
        return gains[min(at, len(gains) - 1)]
    (low, high), (before, after) = confidences[at - 1 : at + 1], gains[at - 1 : at + 1]
    return before + (after - before) * (confidence - low) / (high - low)


class NetworkAware(Reading):
    """Sends a text where the gain in accuracy is worth the time of the link, the queue and the compute behind it."""

    name = "network-aware"
    like = Collaborative.name
    weighs_time = True

    value_ms: Annotated[float, Field(ge=0, le=1e9)] = Field(
        2000.0, description="milliseconds that one more right answer is worth: 2000 pays 20 ms for a point of accuracy"
    )
    ms_per_joule: Annotated[float, Field(ge=0, le=1e9)] = Field(
        0.0, description="milliseconds that a modelled joule of the radio is worth; 0: energy does not count"
    )
    band: Ratio = Field(
        0.2, description="measured times count as unchanged while they stay within this share of what they were"
    )
    confidences: dict[str, list[Ratio]] = Field({}, description="by tier, those whose gains are known, ascending")
    gains: dict[str, dict[str, list[Gain]]] = Field(
        {},
        description="by tier and deeper tier, at each of the confidences: how much more often that one is right; "
        "between them on a straight line",
    )
    compute_ms: dict[str, Annotated[float, Field(ge=0, le=1e9)]] = Field(
        {}, description="by tier, milliseconds of a text there, until they are measured; in a replay always"
    )

    def check(self, where: Where) -> None:
        tiers = where.tiers
        for at, tier in enumerate(tiers[:-1]):
            points, gains = self.confidences.get(tier, []), self.gains.get(tier, {})
            ascending = points and all(low < high for low, high in pairwise(points))
            if not (
                ascending
                and gains.keys() == set(tiers[at + 1 :])
                and all(len(known) == len(points) for known in gains.values())
            ):
                raise UnknownPolicy(
                    f"policy {self.name!r} needs each tier's gains by confidence; `tierwise calibrate` measures them"
                )

    def settled(self, where: Where) -> NetworkAware:
        if self.ms_per_joule and where.links and all(link.joules is None for link in where.links.values()):
            raise UnknownPolicy(f"policy {self.name!r}: ms_per_joule counts joules, and no link here has a power model")
        return self

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        best, most = None, 0.0
        for to, gain, taken_ms in self._ways(where, confidence):
            net = self.value_ms * gain - taken_ms
            if net > most and (where.remaining_s is None or taken_ms < where.remaining_s * 1e3):
                best, most = to, net
        if best is None:
            return Decision(None, 0.0, "confidence" if where.reachable else "no_link")
        return Decision(best, 1.0, "confidence")

    def _ways(self, where: Where, confidence: float) -> Iterator[tuple[str, float, float]]:
        """Each tier that a text can be sent to now, the gain there, and what that costs in milliseconds."""
        for to, gains in self.gains.get(where.tier, {}).items():
            link = where.sight.link(to) if to in where.reachable else None
            if to in where.reachable and not (link is not None and link.is_down):
                gain = gain_at(self.confidences[where.tier], gains, confidence)
                yield to, gain, self.cost_ms(where, to, link)

    def cost_ms(self, where: Where, to: str, link: Link | None) -> float:
        """What sending a text to a tier costs, in milliseconds; a link that nobody knows costs nothing."""
        compute_s = self.compute_ms.get(to, 0.0) / 1e3
        if link is None:
            return compute_s * 1e3
        size = FRAME + WORD * (where.clues.words if where.clues is not None else 0)
        steady, band = where.sight.steady, self.band
        link_s = steady(f"{to} fixed", link.fixed_s, band) + size * steady(f"{to} byte", link.byte_s, band)
        there_s = (link.waiting_s or 0.0) + (compute_s if link.compute_s is None else link.compute_s)
        taken_s = max(link_s + steady(f"{to} there", there_s, band), link.under_way_s)
        joules = 0.0 if link.joules is None else link.joules(size / 2, size / 2, link_s)
        return taken_s * 1e3 + self.ms_per_joule * joules

    def may_offload_after(self, where: Where) -> bool:
        return bool(where.reachable)

    def offload_rule(self, where: Where) -> Rule | None:
        if not where.reachable:
            return None
        parameters: dict[str, int | float | str] = {"value_ms": self.value_ms, "ms_per_joule": self.ms_per_joule}
        if where.visits:  # of a text, and not of a place alone
            for to, gain, taken_ms in self._ways(where, where.visits[-1].confidence):
                parameters |= {f"{to}_gain": round(gain, 4) + 0.0, f"{to}_ms": round(taken_ms, 3)}
        return Rule(name=self.name, parameters=parameters)


class BufferThreshold(Collaborative):
    """Collaborative with a threshold that rises or falls with the work that waits, here or at the next tier."""

    name = "buffer-threshold"
    like = Collaborative.name

    slope: Seconds | dict[str, Seconds] = Field(
        -2.0,
        description="how much offload_threshold changes for each second of work that waits (theta1); a number, or one "
        "per tier; a tier that is not named: 0",
    )
    queue: Literal["next", "own"] = Field(
        "next", description="where that work waits: at the next tier, as it said of late, or at this one"
    )

    def threshold(self, where: Where) -> float:
        slope = self.slope.get(where.tier, 0.0) if isinstance(self.slope, Mapping) else self.slope
        waiting_s = self._waiting_s(where) if slope else 0.0
        return min(1.0, max(0.0, slope * waiting_s + super().threshold(where)))

    def _waiting_s(self, where: Where) -> float:
        if self.queue == "own":
            return where.waiting_s
        link = where.sight.link(where.reachable[0]) if where.reachable else None
        return 0.0 if link is None else link.waiting_s or 0.0


class MdiExit(Reading):
    """MDI-Exit's offloading rule, reconstructed: work that waits goes on, the likelier the sooner it is done there."""

    name = "mdi-exit"
    like = Collaborative.name

    exit_threshold: Ratio | dict[str, Ratio] = Field(
        0.9, description="confidence at which a tier answers (T_e); a number, or one per tier"
    )

    def before(self, where: Where, clues: Clues, draw: float) -> Decision:
        waiting_s = where.waiting_s
        link = where.sight.link(where.reachable[0]) if where.reachable else None
        if link is None or link.is_down or not waiting_s:
            return STAY
        elsewhere_s = link.takes_s(FRAME + WORD * clues.words) + (link.waiting_s or 0.0)
        probability = 1.0 if waiting_s >= elsewhere_s else waiting_s / elsewhere_s
        return Decision(where.reachable[0] if draw < probability else None, probability, "policy")

    def after(self, where: Where, confidence: float, draw: float) -> Decision:
        least = self._least(where)
        if not where.reachable or confidence >= least:
            return Decision(None, 0.0, "confidence" if where.reachable else "no_link")
        return Decision(where.reachable[0], 1.0, "confidence")

    def may_offload_after(self, where: Where) -> bool:
        return bool(where.reachable)

    def offload_rule(self, where: Where) -> Rule | None:
        return Rule(name=self.name, parameters={"exit_threshold": self._least(where)}) if where.reachable else None

    def _least(self, where: Where) -> float:
        """The confidence from which on a tier answers; one that is not named always does."""
        threshold = self.exit_threshold
        return threshold.get(where.tier, 0.0) if isinstance(threshold, Mapping) else threshold

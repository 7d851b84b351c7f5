"""MDI-Exit's four decisions, as pure functions: leave or go on, offload, adapt the rate, adapt the threshold.

Colocrese, Koyuncu, Seferoglu: *Early-Exit meets Model-Distributed Inference at Edge Networks*, arXiv 2408.05247.

    verified        (abstract, third-party notes) Workers hold shares of the layers, separated by exits. Each has an
                    input and an output queue. An exit is taken where C_k(d) >= T_e. Queue lengths and confidences
                    decide where to go on. The source adapts its rate at a fixed threshold, or its threshold at a
                    fixed rate
    reconstructed   The four rules below: the paper's own equations were not at hand
    from memory     T_O = 50, Q1 = 10, Q2 = 30, .2, .1, .2: not from the paper's text
    ours            The period, the bounds, the step of the threshold, which neighbour is asked first, what a node
                    does whose input queue is empty while texts wait in its output queue (`node.py`), and that a
                    text whose next segment is not held here leaves always

Letters: I input queue, O output queue, Gamma service time of a segment, D time to a neighbour, mu time between two
texts of the source, T_e exit threshold. Numbers are counts, seconds and ratios.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Next(StrEnum):
    """Where a text goes after a segment."""

    ANSWER = "answer"  # this exit answers it
    STAY = "stay"  # its next segment runs here: the input queue
    LEAVE = "leave"  # its next segment may run elsewhere, or must: the output queue


@dataclass(frozen=True)
class Constants:
    """What the paper calls T_O, Q1, Q2, alpha, beta, zeta (from memory), and ours."""

    most_leaving: int = 50  # T_O
    few: int = 10  # Q1
    many: int = 30  # Q2
    faster: float = 0.2  # alpha: below Q1 the source's gap shrinks by this share
    little_faster: float = 0.1  # beta: from Q1 to Q2
    slower: float = 0.2  # zeta: from Q2 on it grows by this share
    step: float = 0.02  # ours: of the threshold
    period_s: float = 0.5  # ours: between two adaptations
    least_gap_s: float = 0.001  # ours
    most_gap_s: float = 1.0  # ours: a queue that takes a minute to drain would else close the source for minutes
    least_threshold: float = 0.6  # ours: 1/C + 0.1 for C = 2 classes
    report_s: float = 0.1  # ours: a neighbour that says nothing for so long is asked for its report

    @property
    def silent_s(self) -> float:
        """Ours: a neighbour that says nothing for so long leaves the set."""
        return 10 * self.report_s

    @classmethod
    def of(cls, classes: int, report_s: float = 0.1) -> Constants:
        """With the least threshold for so many classes.

        >>> round(Constants.of(4).least_threshold, 2)
        0.35
        """
        return cls(least_threshold=1 / classes + 0.1, report_s=report_s)


USUAL = Constants()


@dataclass(frozen=True)
class Own:
    """A node as it sees itself: I_n, O_n, and the seconds of work in its input queue, I_n Gamma_n."""

    waiting: int
    leaving: int
    work_s: float


@dataclass(frozen=True)
class Seen:
    """A neighbour as a node sees it: I_m, the seconds of work in its input queue, and D_nm."""

    name: str
    waiting: int
    work_s: float
    delay_s: float

    @property
    def cost_s(self) -> float:
        """D_nm + I_m Gamma_m: when it would begin with one more text."""
        return self.delay_s + self.work_s


def after_segment(
    confidence: float,
    threshold: float,
    *,
    last: bool,
    waiting: int,
    leaving: int,
    most_leaving: int = 50,
    held: bool = True,
) -> Next:
    """Algorithm 1: where a text goes after a segment whose exit has this confidence; `last`: there is no further one.

    `held`: whether this node holds the next segment.

    >>> after_segment(0.95, 0.9, last=False, waiting=3, leaving=0)
    <Next.ANSWER: 'answer'>
    >>> after_segment(0.80, 0.9, last=False, waiting=3, leaving=0)
    <Next.LEAVE: 'leave'>
    >>> after_segment(0.80, 0.9, last=False, waiting=0, leaving=0)
    <Next.STAY: 'stay'>
    >>> after_segment(0.80, 0.9, last=False, waiting=0, leaving=0, held=False)
    <Next.LEAVE: 'leave'>
    """
    if last or confidence >= threshold:
        return Next.ANSWER
    return Next.STAY if held and (waiting == 0 or leaving > most_leaving) else Next.LEAVE


def nearest(neighbours: Iterable[Seen]) -> Seen | None:
    """The neighbour that would begin first (ours: the paper loops over them in an order that is not known)."""
    return min(neighbours, key=lambda seen: seen.cost_s, default=None)


def send_chance(own: Own, to: Seen, *, held: bool = True) -> float:
    """Algorithm 2: the probability of sending the head of the output queue to this neighbour now.

    0 unless O_n > I_m; then min(1, I_n Gamma_n / (D_nm + I_m Gamma_m)). 1 where this node does not hold its segment
    (ours): to wait gains nothing.

    >>> send_chance(Own(4, 2, 0.08), Seen("b", 1, 0.02, 0.14))
    0.5
    """
    if not held:
        return 1.0
    if own.leaving <= to.waiting:
        return 0.0
    return 1.0 if own.work_s >= to.cost_s else own.work_s / to.cost_s


def adapted_gap(gap_s: float, queued: int, constants: Constants = USUAL) -> float:
    """Algorithm 3, at a fixed threshold: the time mu between two texts, from Q = I + O of the source.

    >>> [round(adapted_gap(0.1, queued), 3) for queued in (9, 10, 29, 30)]
    [0.08, 0.09, 0.09, 0.12]
    """
    if queued < constants.few:
        factor = 1 - constants.faster
    elif queued < constants.many:
        factor = 1 - constants.little_faster
    else:
        factor = 1 + constants.slower
    return min(constants.most_gap_s, max(constants.least_gap_s, gap_s * factor))


def adapted_threshold(threshold: float, queued: int, constants: Constants = USUAL) -> float:
    """Algorithm 4, at a fixed rate: the exit threshold T_e, from Q = I + O of the source.

    >>> [round(adapted_threshold(0.9, queued), 2) for queued in (9, 10, 30, 31)]
    [0.92, 0.9, 0.9, 0.88]
    """
    if queued < constants.few:
        return min(1.0, threshold + constants.step)
    if queued > constants.many:
        return max(constants.least_threshold, threshold - constants.step)
    return threshold

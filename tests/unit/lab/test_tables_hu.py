"""Which operating point validation prefers, on outcomes made up so that the surest is known."""

from types import SimpleNamespace

import numpy as np

from lab.papers import hu

ORDER = ("end", "edge", "cloud")
BASE = {**hu.OURS, "offload_threshold": 0.8, "theta": 0.0}


def trial(of):
    return SimpleNamespace(replay=SimpleNamespace(order=ORDER), of=of)


def outcomes(saved, lost, n=2000):
    """A share of 100 ms saved by every text, more or less, and this many answers lost."""
    right = np.ones(n, bool)
    right[:lost] = False
    return SimpleNamespace(ms=100 * (1 - saved) + saved * np.tile([-50.0, 50.0], n // 2), right=right)


def test_the_point_is_surest_of_the_limit_that_it_is_least_sure_of():
    known = {0.85: outcomes(0.30, 30), 0.9: outcomes(0.20, 4), 0.93: outcomes(0.171, 2), 0.95: outcomes(0.1, 0)}

    def of(spec):
        if spec["theta"] == 0.0:
            return outcomes(0, 0)
        least = spec["exit_min_confidence"]
        alone = (
            spec["patience"] == 1
            and not spec["exit_when_unsure"]
            and spec["theta"] == {"end": 0.1, "edge": 0.1, "cloud": 0.1}
        )
        same = least["end"] == least["edge"] and least["end"] in known
        return known[least["end"]] if alone and same else outcomes(0.05, 40)

    chosen = hu.surest(trial(of), BASE, hu.own_rule(ORDER, BASE))
    assert chosen["exit_min_confidence"] == {"end": 0.9, "edge": 0.9, "cloud": 0.9}
    assert chosen["patience"] == 1
    assert chosen["offload_threshold"] == 0.8


def test_no_lost_answer_among_few_texts_proves_little():
    def of(n):
        return lambda spec: outcomes(0, 0, n) if spec["theta"] == 0.0 else known[spec["patience"]](n)

    known = {1: lambda n: outcomes(0.2, 0, n), 2: lambda n: outcomes(0.19, 0, n)}
    few = hu.surest(trial(of(40)), BASE, hu.own_rule(ORDER, BASE))
    assert few["patience"] == 1  # both keep the accuracy equally little surely: first come
    known[1] = lambda n: outcomes(0.2, 9, n)
    assert hu.surest(trial(of(2000)), BASE, hu.own_rule(ORDER, BASE))["patience"] == 2


def test_a_point_beats_by_its_estimates_or_by_its_intervals():
    def row(accuracy, saved):
        return {"paired": {"accuracy": accuracy, "time_saved": saved}}

    assert hu.beats(row((-0.002, -0.004, 0.0), (0.19, 0.171, 0.21))) == {"here": True, "at_95": True}
    assert hu.beats(row((-0.002, -0.006, 0.0), (0.19, 0.171, 0.21))) == {"here": True, "at_95": False}
    assert hu.beats(row((-0.006, -0.009, -0.001), (0.25, 0.24, 0.27))) == {"here": False, "at_95": False}

"""`path-gates` as the planner tries it: at every price, judged by gates that were not fitted on the text.

    the card's gates     {"name": "path-gates"}, judged at the price that `calibrate` chose for these links
    at another price     the gates themselves, fitted on all texts, in the setting: they travel whole

Gates that judge the texts they were fitted on look better than they are, on 2,500 reviews by .1 to .4 points. So
what stands for each is what `judged` says: every third of the texts under gates that the others gave. Left out: gates
for links that the trial does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lab.console import tracked
from lab.fit.gates import fit_path
from lab.fit.prices import NAME, judged, prices, recorded
from lab.replay.trial import Outcomes, Trial
from shared.policies import spec_of


def gated(trial: Trial) -> Iterator[tuple[dict[str, Any], Outcomes]]:
    """Settings with all their parameters, each with its outcomes on every text that can be read."""
    if not trial.read.all():
        readable = [example for example, read in zip(trial.replay.examples, trial.read, strict=True) if read]
        trial = Trial(trial.bundle, readable, trial.conditions, split=trial.split)
    replay, times, links, card = trial.replay, trial.times, trial.conditions.links, trial.bundle.card
    data, deepest = recorded(replay, times), trial.of(f"{replay.order[-1]}-only")
    tried: list[tuple[float, bool]] = [(price, False) for price in prices(deepest.ms / 1e3)]
    if any(profile["links"] == links for profile in card.policies.get(NAME, {}).get("profiles", ())):
        tried.append((card.report["gates"][NAME][links]["chosen"], True))
    for price, as_card in tracked(tried, trial.conditions.recorders.console, "gates at every price"):
        own = {} if as_card else {"profiles": [{"links": links, "tiers": fit_path(data, price)}]}
        full = spec_of(replay.policy({"name": NAME, **own}))
        found = judged(replay, times, links, data, price, as_card=as_card)
        yield (
            full,
            replace(
                trial.of(full),
                label=found.label,
                right=found.label == trial.truth,
                ms=found.seconds * 1e3,
                sent=found.sent,
            ),
        )

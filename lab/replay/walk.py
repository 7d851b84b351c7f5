"""Replay: any policy with any parameters over recorded texts, exactly as the live tiers would have answered.

The policy objects, exit rules, pruning and ensemble are those of the live tiers; only the model is replaced by its
recording. The walk is that of `shared/pipeline/tier.py`, all texts at once (a policy that learns: one by one):

    before -> exit rule over the calibrated exits -> after, with the draw sha256(seed:index:tier) -> prune -> next tier

Row r of a data set is asked alone with the seed `SEED-r` and index 0, as `tierwise bench` asks it: draws agree. A
policy that needs layers its first tier does not hold gets the deepest tier's whole classifier there, in replay only.
Left out: what only happens live (late and failed upstreams, deadlines).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from lab.console import tracked
from lab.data.examples import Example
from lab.replay.ahead import send_ahead
from lab.replay.answers import answer, outcome
from lab.replay.recorder import Kernel, Recorders, source_of
from lab.replay.run import NONE, Run
from lab.replay.sight import LinkSight, ReplaySight
from lab.replay.station import Numbers, Station
from shared.errors import UnknownPolicy
from shared.links.profile import Profile
from shared.model.bundle import Bundle
from shared.model.pools import Signature
from shared.pipeline.route import Route
from shared.policies import Clues, Decision, Learner, Policy, State, Where, bind, build, first_state, travelling
from shared.policies.base import draw, may_speculate
from shared.policies.baselines.fixed import Oracle
from shared.policies.mistakes import decision
from shared.web.settings import Settings


class Replay:
    """One bundle over one data set. Runs no model for texts that the cache knows.

    `links` names each tier's upstreams, nearest first; without it the first tier reaches all and each other the next.
    `profiles` of links, by (from, to), are for policies that look at them. `speculation_budget` is every tier's.
    """

    def __init__(
        self,
        bundle: Bundle,
        examples: Sequence[Example],
        recorders: Recorders,
        *,
        seed: int | str = 0,
        links: Mapping[str, Sequence[str]] | None = None,
        max_tier: str | None = None,
        profiles: Mapping[tuple[str, str], Profile] | None = None,
        speculation_budget: float = Settings.model_fields["speculation_budget"].default,
    ) -> None:
        self.bundle, self.examples, self.corpus = bundle, examples, recorders.corpus
        self.order, self.seed, self._max_tier = bundle.order, seed, max_tier
        self._recorders, self._console = recorders, recorders.console
        self.stations = [self._station(tier, tier) for tier in self.order]
        self._shorter: dict[tuple[Station, int], Station] = {}
        self.numbers = np.array([self.corpus.number(e.text, e.pair) for e in examples])
        self.labels = np.array([example.label for example in examples])
        self.draws = [[draw(f"{seed}-{row}", 0, tier) for row in range(len(examples))] for tier in self.order]
        nearest = [self.order[1:], *(self.order[at + 1 : at + 2] for at in range(1, len(self.order)))]
        links = links or dict(zip(self.order, nearest, strict=True))
        self.routes = [Route(self.order, tier, tuple(links[tier])) for tier in self.order]
        self.profiles, self.speculation_budget = profiles or {}, speculation_budget
        self.ensemble = bundle.card.ensemble()
        self._clues: dict[tuple[int, Signature | None], Clues] = {}

    def _station(self, tier: str, like: str) -> Station:
        """A station of this name with the classifier of another tier."""
        bundle, card, layers = self.bundle, self.bundle.card, self.bundle.tiers[like].layers
        recorder = self._recorders.of(source_of(bundle, like), len(bundle.labels))
        temperatures = card.temperatures.get(like, [card.model_temperatures.get(like, 1.0)] * layers)
        return Station(tier, recorder, layers, temperatures)

    @cached_property
    def _whole_at_first(self) -> list[Station]:
        return [self._station(self.order[0], self.order[-1]), *self.stations[1:]]

    def _limited(self, stations: Sequence[Station], policy: Policy) -> list[Station]:
        """The same tiers, as far as a policy lets each of them read."""
        return [self._reading(station, policy.token_limit(station.name)) for station in stations]

    def _reading(self, station: Station, limit: int | None) -> Station:
        """The same tier, where it reads no more tokens than the limit."""
        source = station.recorder.source
        if limit is None or limit >= source.max_tokens:
            return station
        if (station, limit) not in self._shorter:
            recorder = self._recorders.of(replace(source, max_tokens=limit), station.recorder.classes)
            self._shorter[station, limit] = station.over(recorder)
        return self._shorter[station, limit]

    def policy(self, spec: str | Mapping[str, object]) -> Policy:
        """The policy that a spec names, with this bundle's parameters for whatever it leaves out."""
        return build(spec, self.order, self.bundle.card.policies)

    def travelling(self, policy: Policy) -> dict[str, Any]:
        """The spec that a policy travels as."""
        return travelling(policy, self.bundle.card.policies)

    # -- a policy over every text ------------------------------------------------------------------------------------

    def run(self, policy: Policy, rows: np.ndarray | None = None) -> Run:
        """What the policy does to every text, or to those of some rows; the others then have no label.

        Raises:
            UnknownPolicy: this bundle lacks what the policy needs, whatever its tiers hold.
        """
        oracle = policy if isinstance(policy, Oracle) else None
        stations, replay_only = (self.stations, True) if oracle else self._stations_for(policy)
        sizes, count = self.where(0, stations).layers, len(self.bundle.labels)
        asked = np.arange(len(self.numbers)) if rows is None else rows
        out = Run(policy, sizes, self.corpus, texts=len(self.numbers), labels=count, replay_only=replay_only)
        if isinstance(policy, Learner) and policy.learns:
            self._learn(out, policy, stations, asked)
            return out
        out.bound = bind(policy, self._first_state(policy, stations)).settled(self.where(0, stations))
        walk = Walk(self, out, out.bound, stations)
        for target, group in (self._picked(oracle, asked) if oracle else {NONE: asked}).items():
            walk.arrive(0, group, self.numbers[group], target)
        walk.go()
        answer(out, out.bound, self.ensemble, asked)
        return out

    def alone(self, at: int, like: Run) -> Run:
        """Every text at one tier alone, at full depth, on the stations of another run."""
        policy, everything = self.policy(f"{self.order[at]}-only"), np.arange(len(self.numbers))
        layers, labels = dict(zip(like.tiers, like.layers, strict=True)), len(self.bundle.labels)
        texts, alone = len(everything), like.replay_only
        out = Run(policy, layers, self.corpus, texts=texts, labels=labels, replay_only=alone)
        walk = Walk(self, out, policy, self.stations_of(like))
        walk.arrive(0, everything, self.numbers, at)
        walk.go()
        answer(out, policy, self.ensemble, everything)
        return out

    def _first_state(self, policy: Policy, stations: Sequence[Station]) -> State | None:
        return first_state(policy, self._first(stations), self.bundle.pools)

    def _first(self, stations: Sequence[Station]) -> Where:
        """Where a policy stands that may use every tier."""
        return replace(self.where(0, stations), reachable=self.order[1:])

    def _learn(self, out: Run, policy: Learner, stations: Sequence[Station], asked: np.ndarray) -> None:
        """One text after the other, each answered with what those before it taught."""
        state = self._first_state(policy, stations)
        prunes = bind(policy, state).prunes_at(self.where(0, stations))
        numbers = self.numbers[asked]
        stations[0].table(numbers, Kernel.COUNTED if prunes else Kernel.PLAIN)  # at once, with a progress bar
        for row in tracked(asked.tolist(), self._console, policy.name, least=50):
            rows = np.array([row])
            bound = out.bound = bind(policy, state).settled(self.where(0, stations))
            walk = Walk(self, out, bound, stations)
            walk.arrive(0, rows, self.numbers[rows])
            walk.go()
            answer(out, bound, self.ensemble, rows)
            if state is not None and self._max_tier in (None, self.order[-1]) and out.label[row] != NONE:
                (clues,) = self.clues(self.numbers[rows], 0, bound.signature(self.order[0]))
                state = policy.learn(state, bound, outcome(out, bound, stations, clues, row))

    def _picked(self, policy: Oracle, asked: np.ndarray) -> dict[int, np.ndarray]:
        """The upper bound: by the shallowest tier that is right alone, on the whole text at full depth, its rows."""
        numbers = self.numbers[asked]
        tables = [station.table(numbers, Kernel.PLAIN) for station in self.stations]
        rows = asked[np.all([table.tokens[numbers] > 0 for table in tables], axis=0)]
        labels = np.stack([table.rounded[self.numbers[rows], -1].argmax(-1) for table in tables])  # [T, n]
        pick = np.array([policy.pick(column) for column in (labels == self.labels[rows]).T.tolist()], dtype=np.int64)
        return {tier: rows[pick == tier] for tier in np.unique(pick).tolist()}

    def _stations_for(self, policy: Policy) -> tuple[list[Station], bool]:
        try:
            policy.check(self._first(self.stations))
        except UnknownPolicy:
            whole = self._whole_at_first
            policy.check(self._first(whole))
            return self._limited(whole, policy), True
        return self._limited(self.stations, policy), False

    def stations_of(self, run: Run) -> list[Station]:
        """The tiers as they were in a run."""
        whole = run.replay_only and run.layers[0] != self.stations[0].layers
        return self._limited(self._whole_at_first if whole else self.stations, run.bound)

    # -- what a tier knows --------------------------------------------------------------------------------------------

    def clues(self, numbers: Numbers, at: int, kind: Signature | None) -> list[Clues]:
        """What a tier knows about these texts before any layer runs."""
        missing = [n for n in numbers.tolist() if (n, kind) not in self._clues]
        if missing:
            signs = [None] * len(missing) if kind is None else self.stations[at].recorder.signatures(missing, kind)
            for number, sign in zip(missing, signs, strict=True):
                self._clues[number, kind] = Clues(int(self.corpus.words[number]), sign)
        return [self._clues[number, kind] for number in numbers.tolist()]

    def where(self, at: int, stations: Sequence[Station]) -> Where:
        """What a policy knows about the place where it decides."""
        sizes = {station.name: station.layers for station in stations}
        return Where(self.order[at], self.routes[at].reachable(self._max_tier), sizes, LinkSight(self, at))


class Walk:
    """Texts of a run on their way from tier to tier.

    At each tier they stand in groups, by the tier that must answer them; NONE: the policy decides.
    """

    def __init__(self, replay: Replay, out: Run, policy: Policy, stations: Sequence[Station]) -> None:
        self.replay, self.out, self.policy, self.stations = replay, out, policy, stations
        self._arrived: list[dict[int, list[tuple[np.ndarray, Numbers]]]] = [{} for _ in stations]

    def arrive(self, at: int, rows: np.ndarray, numbers: Numbers, target: int = NONE) -> None:
        """Put rows, as the texts that they are now, before a tier."""
        self._arrived[at].setdefault(target, []).append((rows, numbers))

    def go(self) -> None:
        """Take every text through the tiers, shallowest first."""
        for at, arrived in enumerate(self._arrived):
            if at == 1 and arrived:  # a deeper tier builds the policy anew from what travelled
                self.policy = self.replay.policy(self.replay.travelling(self.policy))
            where = self.replay.where(at, self.stations)
            for target, groups in arrived.items():
                rows, numbers = (np.concatenate(column) for column in zip(*groups, strict=True))
                if target in (NONE, at):
                    if target == NONE:
                        rows, numbers = self._before(at, where, rows, numbers)
                    self._infer(at, where, rows, numbers, final=target == at)
                else:
                    self._send(at, target, rows, numbers, final=True)

    def _before(self, at: int, where: Where, rows: np.ndarray, numbers: Numbers) -> tuple[np.ndarray, Numbers]:
        """Send on the texts that leave before any layer runs. Returns the others."""
        policy, draws = self.policy, self.replay.draws[at]
        if type(policy).before is Policy.before:
            return rows, numbers
        clues = self.replay.clues(numbers, at, policy.signature(where.tier))
        decisions = [
            decision(policy, "before", self.seen(where, at, row, number), clue, draws[row])
            for row, number, clue in zip(rows.tolist(), numbers.tolist(), clues, strict=True)
        ]
        self._follow(at, decisions, rows, numbers)
        stays = np.array([said.to is None for said in decisions], dtype=bool)
        return rows[stays], numbers[stays]

    def _infer(self, at: int, where: Where, rows: np.ndarray, numbers: Numbers, *, final: bool) -> None:
        """Infer here, decide about each text, and send on those that leave."""
        policy, station, out, draws = self.policy, self.stations[at], self.out, self.replay.draws[at]
        prunes = not final and policy.prunes_at(where)
        kernel = Kernel.COUNTED if prunes else Kernel.PLAIN
        table = station.table(numbers, kernel)
        readable = table.tokens[numbers] > 0
        rows, numbers = rows[readable], numbers[readable]
        if not len(rows):
            return
        rule = policy.exit_rule(replace(where, reachable=()) if final else where)
        layer = station.left(numbers, rule, kernel)
        out.numbers[at, rows], out.exit_layer[at, rows], out.counted[at, rows] = numbers, layer, prunes
        out.hops[at, rows] = table.rounded[numbers, layer - 1]
        if final or type(policy).after is Policy.after:
            return
        confidence = table.exits[numbers, layer - 1].max(-1).tolist()
        decisions = [
            decision(policy, "after", self.seen(where, at, row, number, ruled=rule is not None), c, draws[row])
            for row, number, c in zip(rows.tolist(), numbers.tolist(), confidence, strict=True)
        ]
        out.probability[at, rows] = [said.probability for said in decisions]
        out.sent_to[at, rows] = [NONE if d.to is None else out.tiers.index(d.to) for d in decisions]
        if may_speculate(policy, where):
            send_ahead(self, at, where, rows, numbers, layer, table, decisions)
        leaves, pruning = out.sent_to[at, rows] != NONE, policy.pruning(station.name)
        if prunes:
            numbers[leaves] = station.pruned(numbers[leaves], layer[leaves], pruning)
        elif pruning.cuts_middle and (behind := self.replay.bundle.read_behind(station.name, policy.token_limit)):
            numbers[leaves] = station.without_middle(numbers[leaves], behind)
        self._follow(at, decisions, rows, numbers)

    def seen(self, where: Where, at: int, row: int, number: int, *, ruled: bool | None = None) -> Where:
        """The place where a text is decided on."""
        return Where(where.tier, where.reachable, where.layers, ReplaySight(self, at, row, number, ruled=ruled))

    def _follow(self, at: int, decisions: Sequence[Decision], rows: np.ndarray, numbers: Numbers) -> None:
        """Send each text where its decision says."""
        places = [(said.to, said.final) for said in decisions]
        for to, final in dict.fromkeys(places):
            if to is not None:
                group = np.array([place == (to, final) for place in places])
                self._send(at, self.out.tiers.index(to), rows[group], numbers[group], final=final)

    def _send(self, at: int, to: int, rows: np.ndarray, numbers: Numbers, *, final: bool) -> None:
        """Put texts on the link that leads to their tier; with `final` that tier must answer."""
        order, target = self.out.tiers, to if final else NONE
        via = order.index(self.replay.routes[at].toward(order[to]))
        self.out.cross((at, via), rows, numbers, target)
        self.arrive(via, rows, numbers, target)

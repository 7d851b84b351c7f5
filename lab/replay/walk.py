"""Replay: any policy with any parameters over recorded texts, exactly as the live tiers would have answered.

The policy objects, exit rules, pruning and ensemble are those of the live tiers; only the model is replaced by its
recording. The walk is that of `shared/pipeline/tier.py`, all texts at once (a policy that learns: one by one):

    before -> exit rule over the calibrated exits -> after, with the draw sha256(seed:index:tier) -> prune -> next tier

Row r of a data set is asked alone with the seed `SEED-r` and index 0, as `tierwise bench` asks it: draws agree. A
policy that needs layers its first tier does not hold gets the deepest tier's whole classifier there, in replay only.
Left out: what only happens live (late and failed upstreams, deadlines).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from lab.console import progress
from lab.data.examples import Example
from lab.replay.answers import answer, outcome
from lab.replay.recorder import Kernel, Recorders, source_of
from lab.replay.run import NONE, Run
from lab.replay.station import Numbers, Station
from shared.errors import UnknownPolicy
from shared.model.bundle import Bundle
from shared.model.pools import Signature, Vector
from shared.pipeline.route import Route
from shared.policies import Clues, Decision, Learner, Policy, State, Where, bind, build, first_state, spec_of
from shared.policies.base import draw
from shared.policies.baselines.fixed import Oracle


class Replay:
    """One bundle over one data set. Runs no model for texts that the cache knows.

    `links` names each tier's upstreams, nearest first; without it the first tier reaches all and each other the next.
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
    ) -> None:
        self.bundle, self.examples, self.corpus = bundle, examples, recorders.corpus
        self.order, self.seed = bundle.order, seed
        self._console = recorders.console
        self._recorders = [recorders.of(source_of(bundle, tier), len(bundle.labels)) for tier in self.order]
        self.stations = [self._station(tier, tier) for tier in self.order]
        self.numbers = np.array([self.corpus.number(e.text, e.pair) for e in examples])
        self.labels = np.array([example.label for example in examples])
        self.draws = [[draw(f"{seed}-{row}", 0, tier) for row in range(len(examples))] for tier in self.order]
        links = links or _all_then_next(self.order)
        self._routes = [Route(self.order, tier, tuple(links[tier])) for tier in self.order]
        self._depth = len(self.order) - 1 if max_tier is None else self.order.index(max_tier)
        self.ensemble = bundle.card.ensemble()
        self._clues: dict[tuple[int, Signature | None], Clues] = {}

    def _station(self, tier: str, like: str) -> Station:
        """A station of this name with the classifier of another tier."""
        recorder, layers = self._recorders[self.order.index(like)], self.bundle.tiers[like].layers
        card = self.bundle.card
        temperatures = card.temperatures.get(like, [card.model_temperatures.get(like, 1.0)] * layers)
        return Station(tier, recorder, layers, temperatures)

    @cached_property
    def _whole_at_first(self) -> list[Station]:
        return [self._station(self.order[0], self.order[-1]), *self.stations[1:]]

    def policy(self, spec: str | Mapping[str, object]) -> Policy:
        """The policy that a spec names, with this bundle's parameters for whatever it leaves out."""
        return build(spec, self.order, self.bundle.card.policies)

    # -- a policy over every text ------------------------------------------------------------------------------------

    def run(self, policy: Policy) -> Run:
        """What the policy does to every text.

        Raises:
            UnknownPolicy: this bundle lacks what the policy needs, whatever its tiers hold.
        """
        if isinstance(policy, Oracle):
            return self._oracle(policy)
        stations, replay_only = self._stations_for(policy)
        out = self._empty(policy, stations, replay_only)
        if isinstance(policy, Learner) and policy.learns:
            self._learn(out, policy, stations)
        else:
            everything = np.arange(len(self.numbers))
            out.bound = bind(policy, self._first_state(policy, stations))
            self._walk(out, out.bound, stations, everything)
            answer(out, out.bound, stations, self.ensemble, everything)
        return out

    def _first_state(self, policy: Policy, stations: Sequence[Station]) -> State | None:
        return first_state(policy, self._first_where(stations), self.bundle.pools)

    def _first_where(self, stations: Sequence[Station]) -> Where:
        return Where(self.order[0], self.order[1:], {station.name: station.layers for station in stations})

    def _learn(self, out: Run, policy: Learner, stations: Sequence[Station]) -> None:
        """One text after the other, each answered with what those before it taught."""
        state = self._first_state(policy, stations)
        first = Where(self.order[0], self._reachable(0), {station.name: station.layers for station in stations})
        prunes = bind(policy, state).prunes_at(first)
        stations[0].table(self.numbers, Kernel.COUNTED if prunes else Kernel.PLAIN)  # at once, with a progress bar
        quiet = len(self.numbers) < 50 or not self._console.is_terminal
        with progress(self._console, transient=True, disable=quiet) as bar:
            for row in bar.track(range(len(self.numbers)), description=policy.name):
                rows, bound = np.array([row]), bind(policy, state)
                out.bound = bound
                self._walk(out, bound, stations, rows)
                answer(out, bound, stations, self.ensemble, rows)
                if state is not None and self._depth == len(self.order) - 1 and out.label[row] != NONE:
                    (clues,) = self._clues_of(self.numbers[[row]], 0, bound.signature(self.order[0]))
                    state = policy.learn(state, bound, outcome(out, bound, stations, clues, row))

    def _stations_for(self, policy: Policy) -> tuple[list[Station], bool]:
        try:
            policy.check(self._first_where(self.stations))
        except UnknownPolicy:
            whole = self._whole_at_first
            policy.check(self._first_where(whole))
            return whole, True
        return self.stations, False

    def stations_of(self, run: Run) -> list[Station]:
        """The tiers as they were in a run."""
        return self._whole_at_first if run.replay_only and run.layers[0] != self.stations[0].layers else self.stations

    def _empty(self, policy: Policy, stations: Sequence[Station], replay_only: bool) -> Run:
        T, N, C = len(stations), len(self.numbers), len(self.bundle.labels)
        return Run(
            policy=policy,
            bound=policy,
            tiers=self.order,
            layers=tuple(station.layers for station in stations),
            replay_only=replay_only,
            numbers=np.full((T, N), NONE),
            exit_layer=np.zeros((T, N), dtype=np.int64),
            counted=np.zeros((T, N), dtype=bool),
            confidence=np.zeros((T, N)),
            probability=np.zeros((T, N)),
            sent_to=np.full((T, N), NONE),
            carried={},
            target={},
            label=np.full(N, NONE),
            last_label=np.full(N, NONE),
            probabilities=np.zeros((N, C)),
            corpus=self.corpus,
        )

    def _walk(self, out: Run, policy: Policy, stations: Sequence[Station], rows: np.ndarray) -> None:
        """Take rows from tier to tier. `target` is the tier that must answer, NONE where the policy decides."""
        sizes = {station.name: station.layers for station in stations}
        waiting: list[list[tuple[np.ndarray, Numbers, np.ndarray]]] = [[] for _ in stations]
        waiting[0].append((rows, self.numbers[rows], np.full(len(rows), NONE)))
        for at, station in enumerate(stations):
            if not waiting[at]:
                continue
            if at == 1:  # a deeper tier builds the policy anew from what travelled
                policy = self.policy(spec_of(policy))
            where = Where(station.name, self._reachable(at), sizes)
            arrived = tuple(np.concatenate(column) for column in zip(*waiting[at], strict=True))
            for here, numbers, target in self._before(out, policy, where, at, arrived, waiting):
                final = bool(len(target)) and target[0] == at
                for onward in self._local(out, policy, where, station, here, numbers, final=final):
                    self._send(out, at, *onward, waiting)

    def _before(
        self,
        out: Run,
        policy: Policy,
        where: Where,
        at: int,
        arrived: tuple[np.ndarray, ...],
        waiting: list[list[tuple[np.ndarray, Numbers, np.ndarray]]],
    ) -> Iterator[tuple[np.ndarray, Numbers, np.ndarray]]:
        """Pass on what is meant for another tier; what stays, those that must be answered here apart."""
        rows, numbers, target = arrived
        further = target.copy()
        free = np.flatnonzero(target == NONE)
        asked = free if type(policy).before is not Policy.before else free[:0]
        kind = policy.signature(where.tier)
        if len(asked):
            for i, clue in zip(asked.tolist(), self._clues_of(numbers[asked], at, kind), strict=True):
                further[i] = _code(policy.before(where, clue, self.draws[at][rows[i]]), self.order)
        away = (further != NONE) & (further != at)
        if away.any():
            self._send(out, at, rows[away], numbers[away], further[away], waiting)
        for group in (target == at, (further == NONE)):
            if group.any():
                yield rows[group], numbers[group], target[group]

    def _send(
        self,
        out: Run,
        at: int,
        rows: np.ndarray,
        numbers: Numbers,
        further: np.ndarray,
        waiting: list[list[tuple[np.ndarray, Numbers, np.ndarray]]],
    ) -> None:
        """Put texts on the link that leads to their tier; `further` < NONE is -2 - tier, which decides for itself."""
        for code in np.unique(further).tolist():
            to = code if code >= 0 else -2 - code
            via = self._toward(at, to)
            own = further == code
            target = np.full(int(own.sum()), code if code >= 0 else NONE)
            for noted, values in ((out.carried, numbers[own]), (out.target, target)):
                noted.setdefault((at, via), np.full(len(self.numbers), NONE))[rows[own]] = values
            waiting[via].append((rows[own], numbers[own], target))

    def _local(
        self,
        out: Run,
        policy: Policy,
        where: Where,
        station: Station,
        rows: np.ndarray,
        numbers: Numbers,
        *,
        final: bool,
    ) -> Iterator[tuple[np.ndarray, Numbers, np.ndarray]]:
        """Infer here and decide; the rows that go on, with what travels."""
        at = self.order.index(station.name)
        prunes = not final and policy.prunes_at(where)
        kernel = Kernel.COUNTED if prunes else Kernel.PLAIN
        table = station.table(numbers, kernel)
        readable = table.tokens[numbers] > 0
        rows, numbers = rows[readable], numbers[readable]
        if not len(rows):
            return
        layer = station.left(numbers, policy.exit_rule(replace(where, reachable=()) if final else where), kernel)
        confidence = table.exits[numbers, layer - 1].amax(-1).tolist()
        out.numbers[at, rows], out.exit_layer[at, rows], out.counted[at, rows] = numbers, layer, prunes
        out.confidence[at, rows] = table.rounded[numbers, layer - 1].max(-1)
        if final or type(policy).after is Policy.after:
            return
        draws = self.draws[at]
        decisions = [policy.after(where, c, draws[r]) for r, c in zip(rows.tolist(), confidence, strict=True)]
        out.probability[at, rows] = [decision.probability for decision in decisions]
        going = np.array([decision.to is not None for decision in decisions])
        if not going.any():
            return
        further = np.array([_code(decision, self.order) for decision in decisions])[going]
        rows, numbers = rows[going], numbers[going]
        out.sent_to[at, rows] = np.where(further >= 0, further, -2 - further)
        if prunes:
            numbers = station.pruned(numbers, layer[going], policy.pruning(station.name))
        yield rows, numbers, further

    # -- the upper bound -----------------------------------------------------------------------------------------------

    def _oracle(self, policy: Oracle) -> Run:
        """The shallowest tier that is right by itself, on the whole text, at full depth."""
        out = self._empty(policy, self.stations, replay_only=True)
        tables = [station.table(self.numbers, Kernel.PLAIN) for station in self.stations]
        rows = np.flatnonzero(np.all([table.tokens[self.numbers] > 0 for table in tables], axis=0))
        numbers = self.numbers[rows]
        every = np.stack([table.rounded[numbers, -1] for table in tables])  # [T, n, C]
        right = every.argmax(-1) == self.labels[rows]
        pick = np.array([policy.pick(column) for column in right.T.tolist()], dtype=np.int64)
        out.numbers[pick, rows] = numbers
        out.exit_layer[pick, rows] = np.array(out.layers)[pick]
        out.confidence[pick, rows] = every.max(-1)[pick, np.arange(len(rows))]
        for to in np.unique(pick[pick > 0]).tolist():
            at = 0
            while at != to:
                via = self._toward(at, to)
                for noted, values in ((out.carried, numbers[pick == to]), (out.target, to)):
                    noted.setdefault((at, via), np.full(len(self.numbers), NONE))[rows[pick == to]] = values
                at = via
        answer(out, policy, self.stations, self.ensemble, rows)
        return out

    # -- where texts can go ------------------------------------------------------------------------------------------

    def _reachable(self, at: int) -> tuple[str, ...]:
        return self._routes[at].reachable(self.order[self._depth])

    def _toward(self, at: int, to: int) -> int:
        return self.order.index(self._routes[at].toward(self.order[to]))

    def signatures(self, numbers: Numbers, kind: Signature) -> list[Vector | None]:
        """What stands for these texts at the first tier before any layer runs; null where one cannot be read."""
        return self._recorders[0].signatures(numbers.tolist(), kind)

    def _clues_of(self, numbers: Numbers, at: int, kind: Signature | None) -> list[Clues]:
        missing = [n for n in numbers.tolist() if (n, kind) not in self._clues]
        if missing:
            signs = [None] * len(missing) if kind is None else self._recorders[at].signatures(missing, kind)
            for number, sign in zip(missing, signs, strict=True):
                self._clues[number, kind] = Clues(int(self.corpus.words[number]), sign)
        return [self._clues[number, kind] for number in numbers.tolist()]


def _all_then_next(order: Sequence[str]) -> dict[str, list[str]]:
    return {tier: list(order[1:] if at == 0 else order[at + 1 : at + 2]) for at, tier in enumerate(order)}


def _code(decision: Decision, order: Sequence[str]) -> int:
    """Where a text goes: the tier that must answer, or -2 - the tier that decides for itself."""
    if decision.to is None:
        return NONE
    to = order.index(decision.to)
    return to if decision.final else -2 - to

"""One directed link: who enforces its profile, and how an operator changes it."""

from __future__ import annotations

from shared.errors import BadSetting
from shared.links.profile import UNSHAPED, Backend, Profile, profile
from shared.links.shaped import ShapedLinks, ask_shaper
from shared.links.simulated import SimulatedLink
from shared.links.trace import known_trace


class EnforcedLink:
    """From the tier `source` to the tier `target`."""

    def __init__(
        self, source: str, target: str, backend: Backend, profile_name: str, shaped: ShapedLinks | None
    ) -> None:
        self.source, self.target, self._name = source, target, f"{source}-{target}"
        self._backend, self._profile, self._shaped = backend, profile(profile_name), shaped
        self._simulated = SimulatedLink(self._profile) if backend is Backend.SIMULATED else None

    @property
    def link(self) -> tuple[Backend, Profile]:
        """Who enforces what on this link now; a link that should be shaped and is not says `none`, `unshaped`."""
        if self._backend is not Backend.NETEM or self._shaped is None:
            return self._backend, self._profile
        shaped = self._shaped.in_force(self._name)
        return (Backend.NETEM, shaped) if shaped else (Backend.NONE, UNSHAPED)

    @property
    def is_cut(self) -> bool:
        """Whether an operator has cut this link."""
        if self._shaped is not None:
            return self._shaped.is_cut(self._name)
        return self._simulated is not None and self._simulated.is_cut

    @property
    def trace(self) -> str | None:
        """The trace that the link follows; null: none."""
        if self._shaped is not None:
            return self._shaped.trace(self._name)
        return None if self._simulated is None else self._simulated.trace

    async def set_profile(self, name: str) -> None:
        """Make it another link from now on; it ends a cut.

        Raises:
            BadSetting: no such profile, or nobody enforces this link.
            UpstreamFailure: the way out is changed, and the tier at the other end did not change the way back.
        """
        wanted = profile(name)
        try:
            if self._simulated is not None:
                self._profile = wanted
                self._simulated.set(wanted)
            else:
                await self._ask_shaper(do="set", profile=name)
                if wanted.loss_ratio < 1:  # else nothing would come back that says so; a way out that is lost is enough
                    await self._set_way_back(name)
        finally:
            self._forget()

    def play(self, name: str) -> None:
        """Follow a trace of `deploy/netem/traces` over the link's profile, from its start; it ends a cut.

        Raises:
            BadSetting: no such trace, or this tier does not simulate the link.
        """
        trace = known_trace(name)
        if self._simulated is None:
            raise BadSetting("only a simulated link plays a trace here; for a shaped one: tierwise link trace")
        self._simulated.play(trace)
        self._forget()

    async def cut(self, *, cut: bool) -> None:
        """Cut the link, or heal it. Raises BadSetting where nobody enforces it.

        The shaper cuts the way out alone: then no call arrives, and none is answered.
        """
        if self._simulated is None:
            await self._ask_shaper(do="cut" if cut else "heal")
        elif cut:
            self._simulated.cut()
        else:
            self._simulated.heal()
        self._forget()

    async def _ask_shaper(self, **command: str) -> None:
        if self._shaped is None:
            raise BadSetting(f"TIERWISE_LINKS={self._backend}: nobody enforces this link, so nobody can change it")
        await ask_shaper(self._shaped.folder, link=self._name, **command)

    async def _set_way_back(self, name: str) -> None:
        """Have the tier at the other end shape its own way out. Raises UpstreamFailure."""
        raise NotImplementedError

    def _forget(self) -> None:
        """What was measured says nothing about the link from now on."""
        raise NotImplementedError

"""The links of a tier, as `/info` lists them and as an operator may change them: `PUT /v1/links/TIER`.

A shaper shapes its own end of a link alone. So a tier whose links are netem asks the tier at the other end to change
the way back, by the same call: there TIER is the one that the link comes from, and the tiers' key counts.

Off unless TIERWISE_LINK_CONTROL says otherwise: a change holds for everybody who asks this tier, until the next change
or the next start of what enforces the link: the tier, or its shaper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response

from shared.contracts import LinkChange, LinkState, ReplicaState
from shared.errors import (
    BadInput,
    BadJson,
    BadLinkChange,
    BadSetting,
    Draining,
    Failed,
    HeadersTooLarge,
    NoSuchPath,
    SlowBody,
    TooLarge,
    Unauthorized,
    UnsupportedMedia,
    UpstreamFailure,
)
from shared.links.profile import Backend, profile_names
from shared.links.replica import Replica
from shared.links.shaped import ask_shaper
from shared.links.upstream import Upstream
from shared.web.adapters.base import OURS
from shared.web.body import parse, read, validate
from shared.web.guard import Keys, authorize
from shared.web.openapi import KEYED, Described, body_of, problems
from shared.web.settings import PREFIX, Settings

log = structlog.get_logger()
_MOST = 1024  # bytes of a change
_ERRORS = (BadJson, Unauthorized, NoSuchPath, SlowBody, TooLarge, UnsupportedMedia, BadLinkChange, HeadersTooLarge)
_TO = {"name": "to", "in": "path", "required": True, "schema": {"type": "string"}, "example": "edge"}


class LinkControl:
    """`upstreams` are the tier's links by the tier that they lead to; `order` has all tiers, shallowest first."""

    def __init__(self, settings: Settings, keys: Keys, upstreams: Mapping[str, Upstream], order: Sequence[str]) -> None:
        self._settings, self._keys, self._upstreams = settings, keys, upstreams
        self._callers = order[: order.index(settings.tier)] if settings.links is Backend.NETEM else ()

    def add_route(self, app: FastAPI) -> None:
        extra = {"requestBody": body_of(LinkChange), "parameters": [_TO | {"description": "where the link leads"}]}
        app.router.add_api_route(
            "/v1/links/{to}",
            self.change,
            methods=["PUT"],
            operation_id="change_link",
            response_model=LinkState,
            responses={
                204: {"description": "The way back of another tier's link"},
                **problems(*_ERRORS, Draining, Failed),
            },
            openapi_extra=extra | ({"security": KEYED} if self._keys.door else {}),
            route_class_override=Described,
        )

    def described(self) -> dict[str, Any]:
        """What `/info` says of links."""
        on = self._settings.link_control
        links = [_state(upstream).model_dump() for upstream in self._upstreams.values()]
        return {"links": links, "link_control": on, "link_profiles": profile_names() if on else []}

    async def change(self, request: Request) -> Response:
        """Change one link's profile, play a trace over it, or cut or heal it; the answer is the link as it is then.

        It holds for everybody who asks this tier. Where TIERWISE_LINK_CONTROL is off, which it is by default: 404.
        """
        if request.app.state.draining:
            raise Draining("this tier is shutting down")
        to = request.path_params["to"]
        authorize(request, self._keys.tier if to in self._callers else self._keys.door)
        if not self._settings.link_control:
            raise NoSuchPath(f"links of this tier are fixed: start it with {PREFIX}LINK_CONTROL=true to change them")
        asked = await self._read(request)
        try:
            return await self._change(to, asked, by=request.client.host if request.client else None)
        except BadSetting as error:
            raise BadLinkChange(str(error)) from error

    async def _change(self, to: str, asked: LinkChange, *, by: str | None) -> Response:
        facts = {"tier": self._settings.tier, "by": by, **asked.model_dump(exclude_none=True)}
        if to in self._callers:
            await self._change_way_back(to, asked)
            log.warning("way_back_changed", source=to, **facts)
            return Response(status_code=204)
        if to not in self._upstreams:
            raise BadLinkChange(f"no link of this tier leads to {to!r}: it has {', '.join(self._upstreams) or 'none'}")
        upstream = self._upstreams[to]
        try:
            if asked.profile is not None:
                await upstream.set_profile(asked.profile)
            elif asked.trace is not None:
                upstream.play(asked.trace)
            else:
                await upstream.cut(cut=bool(asked.cut))
        except UpstreamFailure as failure:
            log.warning("link_half_changed", to=to, detail=str(failure), **facts)
            raise BadLinkChange(
                f"the way to {to} is {asked.profile} now, but the way back is what it was ({failure}): "
                f"start {to} with {PREFIX}LINK_CONTROL=true and the same key, and send this again"
            ) from failure
        log.warning("link_changed", to=to, **facts)
        return Response(_state(upstream).model_dump_json(), media_type="application/json")

    async def _change_way_back(self, source: str, asked: LinkChange) -> None:
        if asked.profile is None:
            raise BadSetting(f"a link is cut, healed and given a trace where it begins: ask the {source}")
        link, folder = f"{source}-{self._settings.tier}", self._settings.link_state_dir
        await ask_shaper(folder, do="set", link=link, profile=asked.profile)

    async def _read(self, request: Request) -> LinkChange:
        body = await read(request, _MOST, self._settings.body_timeout_ms / 1e3, lambda size: None, media=OURS.media)
        try:
            return validate(LinkChange, parse(body))
        except BadInput as error:
            raise BadLinkChange(str(error), errors=error.errors) from error


def _state(upstream: Upstream) -> LinkState:
    backend, profile = upstream.link
    return LinkState(
        to=upstream.target,
        url=upstream.url,
        backend=backend.value,
        profile=profile.name,
        trace=upstream.trace,
        cut=upstream.is_cut,
        breaker="open" if upstream.is_down else "closed",
        replicas=[_replica(one) for one in upstream.replicas.all] if len(upstream.replicas.all) > 1 else None,
    )


def _replica(replica: Replica) -> ReplicaState:
    return ReplicaState(
        address=replica.address,
        breaker="open" if replica.breaker.open else "closed",
        waiting_s=replica.waiting.seconds,
        under_way=replica.under_way,
    )

"""The links of a tier, as `/info` lists them and as an operator may change them: `PUT /v1/links/TIER`.

Off unless TIERWISE_LINK_CONTROL says otherwise: a change holds for everybody who asks this tier, until the next change
or the tier's next start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response

from shared.contracts import LinkChange, LinkState
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
)
from shared.links.profile import profile_names
from shared.links.upstream import Upstream
from shared.web.body import parse, read, validate
from shared.web.guard import Keys, authorize
from shared.web.openapi import KEYED, Described, body_of, problems
from shared.web.settings import PREFIX, Settings

log = structlog.get_logger()
_MOST = 1024  # bytes of a change
_ERRORS = (BadJson, Unauthorized, NoSuchPath, SlowBody, TooLarge, UnsupportedMedia, BadLinkChange, HeadersTooLarge)
_TO = {"name": "to", "in": "path", "required": True, "schema": {"type": "string"}, "example": "edge"}


class LinkControl:
    """`upstreams` are the tier's links by the tier that they lead to."""

    def __init__(self, settings: Settings, keys: Keys, upstreams: Mapping[str, Upstream]) -> None:
        self._settings, self._keys, self._upstreams = settings, keys, upstreams

    def add_route(self, app: FastAPI) -> None:
        extra = {"requestBody": body_of(LinkChange), "parameters": [_TO | {"description": "where the link leads"}]}
        app.router.add_api_route(
            "/v1/links/{to}",
            self.change,
            methods=["PUT"],
            operation_id="change_link",
            response_model=LinkState,
            responses=problems(*_ERRORS, Draining, Failed),
            openapi_extra=extra | ({"security": KEYED} if self._keys.door else {}),
            route_class_override=Described,
        )

    def described(self) -> dict[str, Any]:
        """What `/info` says of links."""
        on = self._settings.link_control
        links = [_state(upstream).model_dump() for upstream in self._upstreams.values()]
        return {"links": links, "link_control": on, "link_profiles": profile_names() if on else []}

    async def change(self, request: Request) -> Response:
        """Change one link's profile, or cut or heal it; the answer is the link as it is then.

        It holds for everybody who asks this tier. Where TIERWISE_LINK_CONTROL is off, which it is by default: 404.
        """
        if request.app.state.draining:
            raise Draining("this tier is shutting down")
        authorize(request, self._keys.door)
        if not self._settings.link_control:
            raise NoSuchPath(f"links of this tier are fixed: start it with {PREFIX}LINK_CONTROL=true to change them")
        asked = await self._read(request)
        to = request.path_params["to"]
        if to not in self._upstreams:
            raise BadLinkChange(f"no link of this tier leads to {to!r}: it has {', '.join(self._upstreams) or 'none'}")
        upstream = self._upstreams[to]
        try:
            if asked.profile is not None:
                upstream.set_profile(asked.profile)
            else:
                upstream.cut(cut=bool(asked.cut))
        except BadSetting as error:
            raise BadLinkChange(str(error)) from error
        by = request.client.host if request.client else None
        log.warning("link_changed", tier=self._settings.tier, to=to, by=by, **asked.model_dump(exclude_none=True))
        return Response(_state(upstream).model_dump_json(), media_type="application/json")

    async def _read(self, request: Request) -> LinkChange:
        body = await read(request, _MOST, self._settings.body_timeout_ms / 1e3, lambda size: None)
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
        cut=upstream.is_cut,
        breaker="open" if upstream.breaker.open else "closed",
    )

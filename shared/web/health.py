"""What a tier says of itself, to anybody: whether it is alive and ready, what it holds and offers, its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from shared.errors import Draining, HeadersTooLarge, ModelStopped, Refused
from shared.web.about import about
from shared.web.links import LinkControl
from shared.web.offers import Offers, offers
from shared.web.openapi import problems

if TYPE_CHECKING:
    from shared.web.surface import Surface


class Health:
    """These endpoints of a surface; none asks for a key. `links` has the tier's links."""

    def __init__(self, surface: Surface, links: LinkControl) -> None:
        self._surface, self._tier, self._links = surface, surface.tier, links

    def add_routes(self) -> None:
        add = self._surface.app.add_api_route
        head = problems(Refused, HeadersTooLarge)
        add("/livez", self.livez, methods=["GET"], operation_id="livez", responses=head | problems(ModelStopped))
        add(
            "/readyz",
            self.readyz,
            methods=["GET"],
            operation_id="readyz",
            responses=head | problems(Draining, ModelStopped),
        )
        add("/v1/policies", self._policies, methods=["GET"], operation_id="policies", responses=head)
        add("/info", self._info, methods=["GET"], operation_id="info", responses=head)
        add(
            "/metrics",
            self._metrics,
            methods=["GET"],
            operation_id="metrics",
            responses=head,
            response_class=PlainTextResponse,
        )
        for path, plain in (
            ("/livez", self.livez),
            ("/readyz", self.readyz),
            ("/health", self.readyz),
            ("/info", self._info),
            ("/v1/policies", self._policies),
            ("/metrics", self._metrics),
        ):  # the head of the same answer, for probes
            add(path, plain, methods=["HEAD"], include_in_schema=False)

    def check(self) -> None:
        """Whether this tier takes requests.

        Raises:
            Draining: it is shutting down.
            ModelStopped: nothing can be answered any more.
        """
        if self._surface.app.state.draining:
            raise Draining("this tier is shutting down")
        self._check_model()

    def _check_model(self) -> None:
        if not self._tier.worker.is_alive:
            raise ModelStopped("the model's thread has ended: start this tier again")

    async def livez(self, request: Request) -> Response:
        return self._told(request, self._check_model, "alive")

    async def readyz(self, request: Request) -> Response:
        return self._told(request, self.check, "ready")

    def _told(self, request: Request, check: Callable[[], None], status: str) -> Response:
        try:
            check()
        except (Draining, ModelStopped) as error:
            return self._surface.refused(request, error)
        return JSONResponse({"status": status})

    async def _info(self) -> dict[str, Any]:
        surface = self._surface
        described = about(surface.front, surface.classifier, surface.settings, surface.keys)
        return {**described, **self._links.described()}

    async def _policies(self) -> Offers:
        """The policies that this tier offers, with their parameters."""
        return offers(self._surface.front)

    async def _metrics(self, request: Request) -> Response:
        tier, telemetry = self._tier, self._tier.telemetry
        telemetry.queue_depth.labels(tier.name).set(tier.worker.queue.waiting)
        telemetry.wait_seconds.labels(tier.name).set(tier.worker.queue.ahead_s)
        for upstream in tier.upstreams.values():
            link = f"{tier.name}-{upstream.target}"
            telemetry.breaker_open.labels(link).set(upstream.is_down)
            ejected = [one.breaker.open for one in upstream.replicas.all]
            for state, is_out in (("in", False), ("out", True)):
                telemetry.replicas.labels(link, state).set(ejected.count(is_out))
            telemetry.upstream_wait_seconds.labels(link).set(upstream.waiting_s or 0.0)
        content, media = telemetry.exposed(request.headers.get("accept", ""))
        return Response(content, media_type=media)

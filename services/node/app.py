"""A node as an app: its endpoints, over the doors that every tier has: keys, limits, problem documents, drain."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import structlog
from fastapi import FastAPI

from services.node.endpoints import Endpoints
from services.node.metrics import Metrics
from services.node.settings import NodeSettings
from shared import __version__
from shared.errors import BadSetting
from shared.links.profile import Backend, profile
from shared.links.shaped import ShapedLinks
from shared.mesh.algorithms import Constants
from shared.mesh.live import Live
from shared.mesh.node import Node
from shared.mesh.runs import Computed, Runs, Slept, ends_of
from shared.mesh.source import Source
from shared.mesh.topology import held_of
from shared.mesh.way import Way
from shared.model.bundle import Bundle, load_bundle
from shared.model.classifier import load_classifier
from shared.web.guard import read_keys

log = structlog.get_logger()


def create_app(
    settings: NodeSettings, *, runs: Runs | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    """A node as an ASGI app; `runs` and the way to its neighbours are passed in by tests.

    Raises:
        BadSetting: a bundle, neighbour or link that does not exist, or weights that do not fit.
    """
    bundle = load_bundle(settings.bundle)
    settings.check(bundle.order)
    ends = ends_of(bundle, settings.segments) if runs is None else runs.ends
    held = range(len(ends)) if settings.held_segments is None else held_of(settings.held_segments, len(ends))
    if not settings.upstreams and held.stop < len(ends):
        raise BadSetting(f"segment {held.stop + 1}: not held here, and there is no neighbour")
    runs = runs or _runs(settings, bundle, ends, held)
    keys = read_keys(settings.door_key_file, settings.key_file)
    links = {name: profile(settings.link_profiles[name]) for name in settings.upstreams}
    _check_shaped(settings)
    constants = Constants.of(len(bundle.labels), settings.report_ms / 1e3)
    ways = {
        name: Way(
            source=settings.tier,
            target=name,
            url=url,
            profile=links[name],
            backend=settings.links,
            key=keys.tier,
            transport=transport,
            silent_s=constants.silent_s,
        )
        for name, url in settings.upstreams.items()
    }
    now = time.monotonic()
    node = Node(
        settings.tier,
        segments=len(ends),
        held=held,
        neighbours=links,
        constants=constants,
        now=now,
    )
    source = Source(node, settings.adapt, threshold=settings.exit_threshold, gap_s=settings.gap_ms / 1e3, now=now)
    live = Live(node, source, runs, ways, most=settings.queue_limit)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.info("loaded", node=settings.tier, bundle=bundle.name, runs=runs.kind, runs_on=runs.runs_on)
        live.start()
        yield
        app.state.draining = True
        await live.close()

    app = FastAPI(
        title=f"Tierwise node {settings.tier}",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.draining, app.state.live, app.state.telemetry = False, live, Metrics(live)
    app.state.reload = lambda: None  # it has no policy
    Endpoints(app, settings, live, bundle, keys.door, keys.tier).add()
    return app


def _runs(settings: NodeSettings, bundle: Bundle, ends: tuple[int, ...], held: range) -> Runs:
    form, last = settings.state_form, ends[held.stop - 1]
    if settings.recorded is not None and settings.service_ms is not None:
        return Slept(settings.recorded, ends, settings.service_ms / 1e3, form)
    tier = bundle.order[-1]
    model, card = bundle.tiers[tier], bundle.card
    classifier = load_classifier(
        bundle.folder / model.network,
        first=ends[held.start - 1] if held.start else 0,
        layers=last,
        max_tokens=model.max_tokens,
        engine=settings.engine,
        precision=settings.precision,
        device=settings.device,
        threads=settings.threads,
    )
    if tier in card.temperatures:
        classifier = classifier.at(card.temperatures[tier][:last])
    return Computed(classifier, ends, form)


def _check_shaped(settings: NodeSettings) -> None:
    """With netem, the shaper must know every link: a run would only look shaped without.

    Raises:
        BadSetting: it does not.
    """
    if settings.links is not Backend.NETEM:
        return
    shaped = ShapedLinks(settings.link_state_dir)
    ends = {name: sorted((settings.tier, name)) for name in settings.upstreams}  # a link serves both directions
    missing = [name for name, both in ends.items() if not shaped.in_force("-".join(both))]
    if missing:
        raise BadSetting(f"TIERWISE_LINKS=netem, but no shaper shapes the links to {', '.join(missing)}")

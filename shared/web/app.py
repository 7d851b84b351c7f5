"""A tier as an app: its parts, loaded and put together.

`create_app(settings, classifier=..., transport=...)`: the model and the way to the upstreams are passed in by tests.

"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import structlog
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from shared import __version__
from shared.errors import BadSetting
from shared.links.profile import Backend
from shared.links.shaped import ShapedLinks
from shared.links.upstream import Upstream
from shared.model.built import Progress
from shared.model.bundle import UNCALIBRATED, Bundle, load_bundle
from shared.model.classifier import Classifier, load_classifier
from shared.pipeline.carry import Carry, States
from shared.pipeline.front import Front
from shared.pipeline.queue import Queue
from shared.pipeline.speculation import Budget
from shared.pipeline.tier import Tier
from shared.pipeline.worker import Worker
from shared.policies import load, named, names
from shared.telemetry import Telemetry
from shared.web.adapters.base import DEGRADED
from shared.web.adapters.routes import Adapters
from shared.web.guard import Keys, read_keys
from shared.web.health import Health
from shared.web.ledger import Ledger
from shared.web.links import LinkControl
from shared.web.reload import load_policy
from shared.web.settings import Settings
from shared.web.surface import Surface
from shared.web.swagger import add_form
from shared.web.tracing import Traces, exporting

log = structlog.get_logger()
SPANS_S = 1.0  # for the last spans
CORS: dict[str, Any] = {  # what pages of other origins may send and read
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["authorization", "x-request-id", "traceparent"],
    "expose_headers": ["x-request-id", "traceparent", "server-timing", "retry-after", DEGRADED],
}


def create_app(
    settings: Settings,
    *,
    classifier: Classifier | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    traces: Traces | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> FastAPI:
    """A tier as an ASGI app. Everything is loaded here, so a started app is a ready one; deadlines go by `clock`.

    Raises:
        BadSetting: a bundle, tier, link or policy that does not exist, or weights that do not fit.
    """
    if settings.policy_dir is not None:
        load(settings.policy_dir)
    bundle = load_bundle(settings.bundle)
    settings.check(bundle.order)
    if not bundle.card.calibrated:
        log.warning("uncalibrated", bundle=bundle.name, why=UNCALIBRATED)
    keys = read_keys(settings.door_key_file, settings.key_file)
    model = classifier or _load(settings, bundle)
    telemetry = _telemetry(settings, bundle)
    telemetry.info.labels(settings.tier, __version__, bundle.name, model.runs_on).set(1)
    worker, upstreams = _worker(settings, model, clock), _upstreams(settings, keys, telemetry, transport)
    tier = Tier(
        name=settings.tier,
        bundle=bundle,
        worker=worker,
        upstreams=upstreams,
        telemetry=telemetry,
        budget=Budget(settings.speculation_budget),
        hedges=Budget(settings.hedge_budget),
        states=_states(settings, bundle, model),
    )
    front = Front(
        tier, default_policy=named(settings.policy), state_dir=settings.state_dir, deadline_ms=settings.deadline_ms
    )
    if front.prunes:  # else layers with importance would take memory that few requests need
        model.warm_up(importance=True)
    ledger = _ledger(settings, telemetry)
    traces = traces or exporting(settings.otlp_endpoint, settings.tier)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for upstream in upstreams:
            upstream.replicas.look()
        log.info("loaded", tier=settings.tier, bundle=bundle.name, card=bundle.digest[:12], engine=model.runs_on)
        yield
        app.state.draining = True
        for upstream in upstreams:
            await upstream.close()
        worker.close()
        await front.states.close()
        if ledger is not None:
            ledger.close()
        traces.close(SPANS_S)
        # The loop would wait for its threads: one may hang in a name lookup.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    app = FastAPI(
        title=f"Tierwise {settings.tier}",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their scripts from another host
        redoc_url=None,
    )
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS)
    app.state.draining = False
    app.state.tier, app.state.front, app.state.ledger, app.state.telemetry = tier, front, ledger, telemetry
    app.state.reload = partial(load_policy, front, settings.policy)
    surface = Surface(app, settings, keys, model, front, ledger, traces)
    surface.add_routes()
    links = LinkControl(settings, keys, tier.upstreams, bundle.order)
    health = Health(surface, links)
    health.add_routes()
    links.add_route(app)
    Adapters(surface, health).add_routes()
    add_form(app)
    return app


def _states(settings: Settings, bundle: Bundle, model: Classifier) -> States | None:
    if settings.carry is Carry.TEXT:
        return None
    return States(
        name=settings.tier,
        bundle=bundle,
        segment=model.segment,
        carry=settings.carry,
        form=settings.state_form,
        most_bytes=settings.max_body_bytes,
    )


def _telemetry(settings: Settings, bundle: Bundle) -> Telemetry:
    return Telemetry(
        tier=settings.tier,
        tiers=bundle.order,
        policies=names(bundle.order),
        layers=bundle.tiers[settings.tier].layers,
        labels=bundle.labels,
        upstreams=list(settings.upstreams),
    )


def _worker(settings: Settings, model: Classifier, clock: Callable[[], float]) -> Worker:
    if settings.batch_texts > 1 and model.engine.name == "openvino":  # texts that join wait for each other's layers
        log.warning("batches_gain_nothing", tier=settings.tier, engine=model.runs_on, batch_texts=settings.batch_texts)
    queue = Queue(
        limit=settings.queue_limit,
        wait_s=settings.queue_wait_ms / 1e3,
        batch_texts=settings.batch_texts,
        batch_wait_s=settings.batch_wait_ms / 1e3,
        clock=clock,
    )
    return Worker(model, queue)


def _upstreams(
    settings: Settings, keys: Keys, telemetry: Telemetry, transport: httpx.AsyncBaseTransport | None
) -> list[Upstream]:
    shaped = _shaped_links(settings)
    return [
        Upstream(
            source=settings.tier,
            target=target,
            url=url,
            backend=settings.links,
            profile_name=settings.link_profiles[target],
            timeout_s=settings.upstream_timeout_ms / 1e3,
            shaped=shaped,
            transport=transport,
            key=keys.tier,
            probe_s=settings.probe_ms / 1e3,
            count_retry=telemetry.retries.labels(f"{settings.tier}-{target}").inc,
        )
        for target, url in settings.upstreams.items()
    ]


def _ledger(settings: Settings, telemetry: Telemetry) -> Ledger | None:
    if settings.ledger is None:
        return None
    lines, tier = telemetry.ledger_lines, settings.tier
    return Ledger(
        settings.ledger,
        tier=tier,
        texts=settings.ledger_texts,
        count=lambda outcome, count: lines.labels(tier, outcome).inc(count),
    )


def _shaped_links(settings: Settings) -> ShapedLinks | None:
    """The shaper's word on this tier's links: without it, a run on netem would only look shaped."""
    if settings.links is not Backend.NETEM:
        return None
    shaped = ShapedLinks(settings.link_state_dir)
    missing = [target for target in settings.upstreams if not shaped.in_force(f"{settings.tier}-{target}")]
    if missing:
        raise BadSetting(
            f"TIERWISE_LINKS=netem, but {settings.link_state_dir / ShapedLinks.FILE} names no shaped link to "
            f"{', '.join(missing)}: start this tier's shaper, or set TIERWISE_LINKS=simulated"
        )
    return shaped


def _load(settings: Settings, bundle: Bundle) -> Classifier:
    model, card, tier = bundle.tiers[settings.tier], bundle.card, settings.tier
    classifier = load_classifier(
        bundle.folder / model.network,
        layers=model.layers,
        max_tokens=model.max_tokens,
        engine=settings.engine,
        precision=settings.precision,
        device=settings.device,
        threads=settings.threads,
        progress=_say_progress(tier),
    )
    if card.temperatures and card.engine != classifier.runs_on:
        log.warning("card_of_another_engine", tier=tier, card=card.engine, runs_on=classifier.runs_on)
    if settings.calibration == "per_exit" and tier in card.temperatures:
        return classifier.at(card.temperatures[tier])
    return classifier.at([card.model_temperatures.get(tier, 1.0)] * model.layers)


def _say_progress(tier: str) -> Progress:
    started = time.monotonic()

    def say(done: int, of: int) -> None:
        seconds = round(time.monotonic() - started, 1)
        log.info("building_engine", tier=tier, layers=done, of=of, seconds=seconds)

    return say

"""Whole models beside the tiers of a bench: `whole cloud-only`, reached over the tiers' own link, and `whole end-only`.

Each is a service of its own on this host (`lab/whole/service.py`), with the classifier, the tokens and the threads of
the bundle's last tier, or of its first one. The client carries each text over a simulated link with the profile of the
first tier's link to the last one, body for body as the tier does; it needs no hop through the first tier.
Left out: containers, whose links the kernel shapes; tiers elsewhere; pairs of texts.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from lab.console import aside
from lab.data.examples import ALL, training_rows
from lab.data.readable import Reader, readable
from lab.live.bench import Ask
from lab.live.client import connect, info_of
from lab.live.stack import free_ports, started, stop, wait_ready
from lab.whole import Runtime
from lab.whole.build import CALIBRATION, Maker
from lab.whole.client import Place, WholeClient
from lab.whole.runtimes import INT8, ONNXRUNTIME, inputs_of
from lab.whole.service import Serving
from shared.errors import BadSetting
from shared.links.profile import Backend
from shared.model.base import load_tokenizer
from shared.model.bundle import load_bundle
from shared.model.classifier import read_trained
from shared.model.tokens import SpecialTokens
from shared.web.parent import FLAG

MODELS = {Runtime.OPENVINO: INT8, Runtime.ONNXRUNTIME: ONNXRUNTIME}
_SHOWN = {Runtime.OPENVINO: "OpenVINO int8", Runtime.ONNXRUNTIME: "ONNX Runtime int8"}


@dataclass(frozen=True)
class Built:
    """A tier's whole model, built and not yet served."""

    name: str  # its row in the report
    tier: str  # whose place it takes
    runtime: Runtime
    folder: Path
    base: str
    layers: int
    max_tokens: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Whole:
    """A whole model that is served, and the link that leads to it; none: it is on the device."""

    built: Built
    url: str
    threads: int
    source: str
    link: str | None  # its profile

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[Ask]:
        """How a bench asks it."""
        built = self.built
        client = WholeClient(
            Place(self.url, built.name, built.tier, built.layers, built.folder.name[:12], self.source, self.link)
        )
        try:
            yield client.ask
        finally:
            await client.close()

    @property
    def about(self) -> dict[str, Any]:
        """For a report."""
        built = self.built
        return {
            "runtime": f"{built.runtime} {version(built.runtime)}",
            "built": built.folder.name,
            "tier": built.tier,
            "layers": built.layers,
            "max_tokens": built.max_tokens,
            "threads": self.threads,
            "link": self.link,
        }


def build(bundle_name: str, data: str, runtimes: Sequence[Runtime], console: Console) -> list[Built]:
    """The whole models of a bundle's last and first tier, quantized over training texts of the data.

    Raises:
        BadSetting: a runtime that is not installed, pairs of texts, or no training text that can be read.
    """
    bundle = load_bundle(bundle_name)
    examples, used = training_rows(data, None, bundle.labels)
    if any(example.pair is not None for example in examples):
        raise BadSetting(f"{data}: whole models read one text, and these are pairs: leave out --whole")
    if used == ALL:
        aside().print(
            f"{data} has no training split: int8 ranges come from the texts that are measured", style="yellow"
        )
    out = []
    for tier in dict.fromkeys((bundle.order[-1], bundle.order[0])):
        model = bundle.tiers[tier]
        folder = bundle.folder / model.network
        base = read_trained(folder).base
        tokens = SpecialTokens(load_tokenizer(base))
        texts, _ = readable(examples[-CALIBRATION:], [Reader(tokens, model.max_tokens)])
        fitted = [inputs_of([tokens.encode(text.text, None, model.max_tokens)], tokens.pad_id) for text in texts]
        with console.status(f"the whole model of {tier}: the first time it is exported and quantized (minutes)"):
            place = Maker(folder, model.layers, fitted).built()
        for runtime in dict.fromkeys(runtimes):
            name = f"whole {tier}-only ({_SHOWN[runtime]})"
            labels = tuple(bundle.labels)
            out.append(Built(name, tier, runtime, place, base, model.layers, model.max_tokens, labels))
    return out


@contextmanager
def served(built: Sequence[Built], url: str, console: Console) -> Iterator[list[Whole]]:
    """Serve whole models on this host until the block ends, beside the tiers whose first one is at `url`.

    Raises:
        BadSetting: a service that stopped, or links that are not simulated.
    """
    wholes = asyncio.run(_places(built, url)) if built else []
    processes = []
    with tempfile.TemporaryDirectory(prefix="tierwise-") as scratch:
        try:
            for at, whole in enumerate(wholes):
                command = ["lab.whole.service", json.dumps(asdict(_serving(whole))), FLAG]
                logs = Path(scratch) / f"{at}.log"
                processes.append(started(whole.built.name, whole.url, command, os.environ, logs))
            with console.status("starting the whole models"):
                wait_ready(processes)
            yield wholes
        finally:
            stop(processes)


def _serving(whole: Whole) -> Serving:
    built, port = whole.built, httpx.URL(whole.url).port
    assert port is not None
    return Serving(
        model=MODELS[built.runtime],
        folder=str(built.folder),
        base=built.base,
        max_tokens=built.max_tokens,
        labels=built.labels,
        threads=whole.threads,
        port=port,
    )


async def _places(built: Sequence[Built], url: str) -> list[Whole]:
    """Where each is to be served, with the threads of its tier and the link that leads there."""
    async with connect(url, timeout=10) as client:
        first = await info_of(client)
    links = {link["to"]: link for link in first["links"]}
    port, out = free_ports(len(built)), []
    for at, one in enumerate(built):
        threads, link = first["threads"], links.get(one.tier)
        if link is not None:
            if link["backend"] != Backend.SIMULATED.value:
                raise BadSetting(f"whole models need simulated links: {first['tier']}-{one.tier} is {link['backend']}")
            async with connect(link["url"], timeout=10) as client:
                threads = (await info_of(client))["threads"]
        place = f"http://127.0.0.1:{port + at}"
        out.append(Whole(one, place, threads, first["tier"], None if link is None else link["profile"]))
    return out

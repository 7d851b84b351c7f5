"""The links of a running stack: its shapers, found through the Docker Engine, and what they say and do.

Every change is made at both ends of a link. Shapers are containers whose Compose service is TIER-shaper.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.shaper.shape import Direction
from services.shaper.verify import Check, Report, judge_probe, judge_settings
from shared.errors import BadSetting
from shared.links.profile import profile
from shared.links.trace import parse

SERVICE, PROJECT = "com.docker.compose.service", "com.docker.compose.project"
Ends = dict[Direction, dict[str, Any]]  # what the end that sends in a direction says
_CTL = ["python", "-S", "-m", "services.shaper.ctl"]
_ARGUMENT = 120_000  # bytes: Linux takes 128 KiB in one argument


class Shaper(Protocol):
    """One tier's shaper: a command as JSON in, its answer out; raises BadSetting with the shaper's own words."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ContainerShaper:
    """The shaper in a container of the Docker SDK."""

    tier: str
    container: Any

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        from docker.errors import DockerException

        line = json.dumps(request)
        if len(line) > _ARGUMENT:
            raise BadSetting(
                f"trace {request.get('name')}: too long to hand over; mount it and give the shaper its path"
            )
        try:
            status, (out, err) = self.container.exec_run([*_CTL, line], demux=True)
        except DockerException as error:
            raise BadSetting(f"{self.tier}-shaper: {error}") from error
        try:
            answer = json.loads(out or b"")
        except ValueError:
            raise BadSetting(f"{self.tier}-shaper: status {status}: {(err or out or b'').decode().strip()}") from None
        if "error" in answer:
            raise BadSetting(f"{self.tier}-shaper: {answer['error']}")
        return dict(answer)


def running_shapers(project: str | None = None) -> dict[str, ContainerShaper]:
    """Tier -> shaper of the running stack.

    Raises:
        BadSetting: no Docker Engine, nothing running, or several stacks and no project named.
    """
    try:
        import docker
    except ImportError as error:
        raise BadSetting("links of running containers need the Docker SDK: pip install docker") from error
    project = project or os.environ.get("COMPOSE_PROJECT_NAME")
    try:
        filters = {"label": [SERVICE] + ([f"{PROJECT}={project}"] if project else [])}
        found = docker.from_env().containers.list(filters=filters)
    except docker.errors.DockerException as error:
        raise BadSetting(f"no Docker Engine answers: start it, or set DOCKER_HOST ({error})") from error
    shapers = [one for one in found if one.labels[SERVICE].endswith("-shaper")]
    projects = sorted({one.labels.get(PROJECT, "") for one in shapers})
    if not shapers:
        raise BadSetting("no link shaper is running: start the stack with `docker compose up`")
    if len(projects) > 1:
        raise BadSetting(
            f"several stacks are running ({', '.join(projects)}): --project or COMPOSE_PROJECT_NAME chooses"
        )
    tiers = {one.labels[SERVICE].removesuffix("-shaper"): one for one in shapers}
    return {tier: ContainerShaper(tier, one) for tier, one in tiers.items()}


class Links:
    """The links between the tiers of these shapers."""

    def __init__(self, shapers: Mapping[str, Shaper]) -> None:
        self._shapers = shapers

    def show(self) -> dict[str, Ends]:
        """Link -> direction -> what the end that sends in it says."""
        links = dict[str, Ends]()
        with ThreadPoolExecutor() as at_once:
            answers = at_once.map(lambda shaper: shaper.ask({"do": "show"}), self._shapers.values())
            for tier, answer in zip(self._shapers, answers, strict=True):
                for name, shown in answer["links"].items():
                    links.setdefault(name, {})[Direction(shown["direction"])] = shown | {"tier": tier}
        return {name: dict(sorted(ends.items(), reverse=True)) for name, ends in sorted(links.items())}

    def change(
        self, link: str, up: dict[str, Any], down: dict[str, Any] | None = None, *, one_end: bool = False
    ) -> Ends:
        """Ask the source `up` and the target `down` (or the same), at once; their answers.

        Raises:
            BadSetting: no such link, or only one of its ends runs here and `one_end` is not set.
        """
        ends = {}
        for tier, shaper in self._shapers.items():
            if link.startswith(f"{tier}-"):
                ends[Direction.UP] = shaper, up
            if link.endswith(f"-{tier}"):
                ends[Direction.DOWN] = shaper, down or up
        if len(ends) < 2 and not (ends and one_end):
            hint = "; --one-end changes the other end alone" if ends else ""
            running = ", ".join(sorted(self._shapers))
            raise BadSetting(f"link {link!r}: expected SOURCE-TARGET, of the tiers that run here: {running}{hint}")
        with ThreadPoolExecutor() as at_once:
            answers = at_once.map(lambda end: end[0].ask(end[1] | {"link": link}), ends.values())
            return dict(zip(ends, answers, strict=True))

    def set_profile(self, link: str, name: str, *, one_end: bool = False) -> Ends:
        """Put a profile in force at both ends; ends a trace or a cut. Raises BadSetting, as all of these do."""
        profile(name)
        return self.change(link, {"do": "set", "profile": name}, one_end=one_end)

    def play_trace(self, link: str, up: Path, down: Path | None = None, *, one_end: bool = False) -> Ends:
        """Replay one file in both directions, or one in each, over the profile in force."""
        packed = {path: parse(path.name, path.read_text("utf-8", "replace")).pack() for path in (up, down or up)}
        asked = [{"do": "trace", "name": path.name, "packed": packed[path]} for path in (up, down or up)]
        return self.change(link, *asked, one_end=one_end)

    def cut(self, link: str, *, one_end: bool = False) -> Ends:
        """Lose every packet, both ways."""
        return self.change(link, {"do": "cut"}, one_end=one_end)

    def heal(self, link: str, *, one_end: bool = False) -> Ends:
        """Back to what was before the cut."""
        return self.change(link, {"do": "heal"}, one_end=one_end)

    def verify(self, links: Sequence[str] | None = None) -> list[Report]:
        """Measure links one after another (all of them unless named); nothing else should use them meanwhile.

        Raises:
            BadSetting: no such link, or none that is shaped.
        """
        shown = self.show()
        if not shown:
            raise BadSetting("no link is shaped: the stack was started with TIERWISE_LINKS=simulated or none")
        for link in links or ():
            if link not in shown:
                raise BadSetting(f"link {link!r}: running links are {', '.join(shown)}")
        return [self._verify(link, shown[link]) for link in links or shown]

    def _verify(self, link: str, ends: Ends) -> Report:
        first = next(iter(ends.values()))
        path, mode, measured = profile(first["profile"]), first["mode"], dict[str, Any]()
        checks = [judge_settings(path, direction, shown) for direction, shown in ends.items()]
        in_force = [f"{shown['profile']} ({shown['mode']})" for shown in ends.values()]
        checks.append(Check("both ends", in_force[0], in_force[-1], held=len(set(in_force)) == 1))
        source = ends.get(Direction.UP)
        if source and mode in ("profile", "cut"):
            probe, request = self._shapers[source["tier"]], {"do": "probe", "link": link}
            measured = probe.ask(request)
            if not all(check.held for check in judge_probe(path, mode, measured)):
                measured = probe.ask(request) | {"first": measured}  # 3 deviations refuse 1 in 370 links that hold
            checks += judge_probe(path, mode, measured)
        return Report(link, path.name, mode, tuple(checks), measured)


def running_links(project: str | None = None) -> Links:
    """The links of the running stack. Raises BadSetting, as `running_shapers`."""
    return Links(running_shapers(project))


def address(tier: str, link: str, *, project: str | None = None) -> str:
    """IP address of a tier on a link's network; Compose names the network after the link."""
    shaper = running_shapers(project).get(tier)
    networks = shaper.container.attrs["NetworkSettings"]["Networks"] if shaper else {}
    for name, network in networks.items():
        if name == link or name.endswith(f"_{link}"):
            return str(network["IPAddress"])
    raise BadSetting(f"the {tier} tier has no address on a network {link}")

"""Settings of a tier: read once from `TIERWISE_*` variables; an unknown or bad one stops the start."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar, overload

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import BadSetting, did_you_mean, in_words
from shared.links.address import SEPARATOR, fault_of, may_hold_secret
from shared.links.profile import Backend, profile
from shared.model.encoder import EngineName, PrecisionName
from shared.model.state import Form
from shared.pipeline.carry import Carry

PREFIX = "TIERWISE_"
# Read elsewhere (shared/model/weights.py, the containers' files), so not unknown here. Only these: a name of this kind
# with a typing error would otherwise count for nothing, and nobody would know.
ELSEWHERE = {
    f"{PREFIX}{name}"
    for name in (
        *("CACHE_DIR", "BIND", "BUILD", "DASHBOARDS", "HEALTH_INTERVAL", "TIER_KEY", "DOOR_KEY", "PROMETHEUS_PORT"),
        *(
            "GRAFANA_PORT",
            "PROMETHEUS_KEEP",
            "PROMETHEUS_DISK",
            "PROMETHEUS_MEMORY",
            "GRAFANA_MEMORY",
            "LAB_MEMORY",
            "GPU_MEMORY",
        ),
        *(f"MESH_{what}" for what in ("LINK", "TIER", "SEGMENTS", "EXIT_THRESHOLD", "ADAPT")),
        *(f"MESH_HOLD_N{at}" for at in range(1, 6)),
        *("END_EDGE", "END_CLOUD", "EDGE_CLOUD", "EDGE_BIND", "CLOUD_BIND", "END_UPSTREAMS", "EDGE_UPSTREAMS"),
        *(f"{tier}_{what}" for tier in ("END", "EDGE", "CLOUD") for what in ("CPUS", "CPUSET", "MEMORY", "THREADS")),
    )
}
_ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?")
_PASSWORD = re.compile(r"://.*@", re.DOTALL)


S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Role:
    """What a tier is before any setting says otherwise: `services/` holds one for each tier that it deploys."""

    tier: str
    port: int = 8080
    upstreams: Mapping[str, str] = field(default_factory=dict)  # tiers to offload to, nearest first, and their URLs
    links: Mapping[str, str] = field(default_factory=dict)  # the profile of the link to each; others are `ideal`
    threads: int = 1


class Settings(BaseSettings):
    """One tier's settings. Lists of pairs are written `edge=http://edge:8081,cloud=http://cloud:8082`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    tier: str = Field(description="which tier of the bundle this is")
    bundle: str = Field(
        "collaborative", description="bundle: a name in deploy/models, or a folder (./NAME, where both are called so)"
    )
    policy: str = Field("collaborative", description="policy when a request names none: its name, or a file .json")
    policy_dir: Path | None = Field(None, description="folder of files with policies of your own; none: no such files")
    calibration: Literal["per_exit", "per_model"] = Field(
        "per_exit", description="one temperature per exit, or the paper's one per model"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8080, ge=1, le=65535, description="port to listen on")
    published: str | None = Field(
        None, description="in a container: the machine's ADDRESS:PORT that leads to the port; empty: not published"
    )
    allow_open: bool = Field(
        False, description="start without a key where other machines reach the port: anybody there may ask"
    )
    upstreams: Annotated[dict[str, str], NoDecode] = Field(
        {}, description="tiers to offload to, nearest first: TIER=URL,...; of several replicas: TIER=URL|URL,..."
    )
    links: Backend = Field(Backend.SIMULATED, description="who enforces the link profiles")
    link_profiles: Annotated[dict[str, str], NoDecode] = Field(
        {}, description="profile of the link to each upstream: TIER=PROFILE,..."
    )
    link_control: bool = Field(False, description="let who may classify change and cut links: PUT /v1/links/TIER")
    link_state_dir: Path = Field(
        Path("/run/tierwise"), description="with netem: where the shaper says what is in force"
    )
    upstream_timeout_ms: float = Field(10_000.0, gt=0, le=600_000, description="limit of one call to an upstream (ms)")
    probe_ms: float = Field(
        2_000.0, gt=0, le=600_000, description="pause before a failed upstream is probed, up to 4 times this (ms)"
    )
    deadline_ms: float | None = Field(None, gt=0, le=600_000, description="deadline of requests that name none (ms)")
    engine: EngineName = Field("auto", description="what computes the model; auto: torch on CUDA, else openvino")
    precision: PrecisionName = Field("auto", description="what its linear maps compute in; auto: the best there is")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    threads: int = Field(1, ge=1, le=512, description="compute threads of the model")
    max_inputs: int = Field(32, ge=1, description="inputs in one request")
    max_body_bytes: int = Field(2_000_000, ge=1024, description="size of a request's body (bytes)")
    body_timeout_ms: float = Field(30_000.0, gt=0, le=600_000, description="limit of reading a request's body (ms)")
    key_file: Path | None = Field(
        None, description="secret file: the bearer key that tiers show each other; none: the door's"
    )
    door_key_file: Path | None = Field(
        None, description="secret file: the bearer key that /v1/classify asks for; none: the tiers'"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose pages may ask: https://HOST,... or * for all; none: none"
    )
    otlp_endpoint: str | None = Field(
        None, description="URL that OpenTelemetry spans are sent to (extra `otel`); none: not sent"
    )
    queue_limit: int = Field(64, ge=1, description="requests that may wait for the model")
    queue_wait_ms: float = Field(
        100.0, gt=0, le=600_000, description="requests are refused while those that wait need longer than this (ms)"
    )
    batch_texts: int = Field(
        1, ge=1, description="texts of waiting requests that may join; 1: none; more than 1 gains on GPUs alone"
    )
    batch_wait_ms: float = Field(
        0.0, ge=0, le=10_000, description="how long a request that had to queue waits for others to join (ms)"
    )
    speculation_budget: float = Field(
        0.2, ge=0, le=1, description="share of any 100 texts that may be sent ahead of this tier's answer in vain"
    )
    hedge_budget: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of any 100 calls that may be made another way too, where they are late; 0: none",
    )
    carry: Carry = Field(
        Carry.TEXT, description="how a text goes on to a tier with the same network: text, state, or auto: the cheaper"
    )
    state_form: Form = Field(Form.FP16, description="what hidden values travel as: fp32, fp16 or int8")
    drain_s: float = Field(20.0, ge=0, le=3600, description="time to finish accepted requests on shutdown (s)")
    state_dir: Path | None = Field(
        None, description="where policies that learn keep what they learned; none: lost on restart"
    )
    ledger: Path | None = Field(
        None, description="file that every decision is appended to, a JSON line per text; none: not kept"
    )
    ledger_texts: bool = Field(False, description="put the texts into the ledger too, not their sha256 alone")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")

    @field_validator("upstreams", "link_profiles", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(sep and key.strip() and rest.strip() for key, sep, rest in pairs):
            raise ValueError("expected TIER=VALUE,TIER=VALUE")
        out = {key.strip(): rest.strip() for key, _, rest in pairs}
        if len(out) < len(pairs):
            raise ValueError("a tier is named twice")
        return out

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        origins = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if isinstance(origins, list) and not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("expected origins without a path, as a browser sends them: https://HOST,http://HOST:PORT")
        return origins

    @field_validator("policy_dir", "state_dir", "ledger", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return None if value == "" else value  # as Compose and shells hand on what is not set

    @field_validator("link_state_dir", "key_file", "door_key_file", "policy_dir", "state_dir", "ledger")
    @classmethod
    def _paths(cls, value: Path | None) -> Path | None:
        try:
            return value and value.expanduser()
        except RuntimeError as error:
            raise ValueError("nobody knows this user's home folder: write the whole path") from error

    @field_validator("upstreams", "otlp_endpoint")
    @classmethod
    def _urls(cls, value: dict[str, str] | str | None) -> dict[str, str] | str | None:
        named = value.items() if isinstance(value, dict) else [("", value)]
        for tier, url in [(tier, url) for tier, urls in named if urls is not None for url in urls.split(SEPARATOR)]:
            if fault := fault_of(url):
                raise ValueError(f"{tier}: {fault}" if tier else fault)
        for tier, urls in value.items() if isinstance(value, dict) else ():
            if len({url.rstrip("/") for url in urls.split(SEPARATOR)}) <= urls.count(SEPARATOR):
                raise ValueError(f"{tier}: an address is named twice")
        return value

    def check(self, order: Sequence[str]) -> None:
        """Whether tier and links fit the tiers of a bundle, shallowest first.

        Raises:
            BadSetting: a tier that the bundle does not have, an upstream that is not deeper, a link without profile, or
                a port that is open to other machines without a key.
        """
        self._check_open()
        if self.tier not in order:
            raise BadSetting(f"{PREFIX}TIER={self.tier!r}: the bundle's tiers are {', '.join(order)}")
        deeper = order[order.index(self.tier) + 1 :]
        for target in self.upstreams:
            if target not in deeper:
                raise BadSetting(f"{PREFIX}UPSTREAMS: {target!r} is not deeper than {self.tier}: {_listed(deeper)}")
        if self.upstreams.keys() != self.link_profiles.keys():
            raise BadSetting(
                f"{PREFIX}LINK_PROFILES must name a profile for each of {PREFIX}UPSTREAMS ({_listed(self.upstreams)}) "
                f"and for nothing else; it names {_listed(self.link_profiles)}"
            )
        for name in self.link_profiles.values():
            profile(name)

    def _check_open(self) -> None:
        if self.key_file or self.door_key_file or self.allow_open or self.published == "":
            return
        where, host = f"{PREFIX}HOST={self.host!r}", self.host
        if self.published is not None:
            where, host = f"the port is published at {self.published!r}", self.published.rpartition(":")[0].strip("[]")
        if not host or reached_by_others(host):
            raise BadSetting(
                f"{where}: other machines reach this tier, and no key is set. Name files with keys in "
                f"{PREFIX}KEY_FILE and {PREFIX}DOOR_KEY_FILE, use 127.0.0.1, or say {PREFIX}ALLOW_OPEN=true"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def reached_by_others(host: str) -> bool:
    """Whether other machines reach a socket at `host`; a name is safe if it stands for loopback addresses alone."""
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return True
    addresses = [ipaddress.ip_address(address) for address in found]
    return not all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in addresses)


def key_path(setting: str, named: str | Path | None) -> Path | None:
    """The file that a setting names for a key; null where it names none.

    Raises:
        BadSetting: there is no such file. The value is not shown: people put the key itself there.
    """
    if named is None:
        return None
    if not os.path.exists(named):
        raise BadSetting(f"{setting}: the file that it names is missing: put the key into a file and give its path")
    return Path(named)


def unread_env_file() -> str | None:
    """A warning if a `.env` here names settings that are not set: Compose alone reads that file. Else null."""
    try:
        text = Path(".env").read_text(errors="replace") if Path(".env").is_file() else ""
    except OSError:
        return None
    named = dict.fromkeys(re.findall(rf"^\s*(?:export\s+)?({PREFIX}\w+)", text.removeprefix("\ufeff"), re.MULTILINE))
    if not (unread := [name for name in named if name not in os.environ]):
        return None
    more = ", ..." if len(unread) > 3 else ""
    return f".env is for containers and is not read here: {', '.join(unread[:3])}{more} must be exported to count"


def _environment(kind: type[Settings]) -> dict[str, str]:
    """The `TIERWISE_*` variables.

    Raises:
        BadSetting: one that no such service and no container reads, or one with a password in a URL, which is not
            shown.
    """
    ours = {key: value for key, value in os.environ.items() if key.startswith(PREFIX)}
    known = {f"{PREFIX}{name.upper()}" for name in kind.model_fields} | ELSEWHERE
    if unknown := sorted(ours.keys() - known):
        told = ", ".join(f"{name}{did_you_mean(name, known)}" for name in unknown)
        raise BadSetting(f"unknown setting {told}: see `tierwise print-config`")
    for key, value in ours.items():
        if _PASSWORD.search(value):
            raise BadSetting(f"{key}: {fault_of(value)}")
    return ours


@overload
def load_settings(role: Role) -> Settings: ...
@overload
def load_settings(role: Role, kind: type[S]) -> S: ...
def load_settings(role: Role, kind: type[Settings] = Settings) -> Settings:
    """Settings of a tier, or of another `kind` of service, from the environment; the rest is as its role says.

    Raises:
        BadSetting: an unknown `TIERWISE_` variable or a bad value; the message names it and what was expected.
    """
    given = {key.removeprefix(PREFIX).lower(): value for key, value in _environment(kind).items()}
    if not given.get("threads"):  # the containers hand on an empty one
        given.pop("threads", None)
    usual = {"tier": role.tier, "port": role.port, "upstreams": dict(role.upstreams), "threads": role.threads}
    try:
        settings = kind(**{key: value for key, value in usual.items() if key not in given})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        key = f"{PREFIX}{'_'.join(map(str, first['loc'][:1])).upper()}"
        shown = "" if may_hold_secret(first["input"]) else f"={first['input']!r}"
        told = in_words(first["type"], first["msg"])
        raise BadSetting(f"{key}{shown}: {told}") from None  # pydantic's own text quotes the value
    for name in ("key_file", "door_key_file"):
        key_path(f"{PREFIX}{name.upper()}", getattr(settings, name))
    if "link_profiles" in given:
        return settings
    return settings.model_copy(
        update={"link_profiles": {target: role.links.get(target, "ideal") for target in settings.upstreams}}
    )

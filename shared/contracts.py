"""What travels between client and tier, and between tiers. Times here are milliseconds; field names say so."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

CONTRACT_VERSION = 2
DegradedReason = Literal[
    "upstream_timeout", "upstream_unavailable", "upstream_refused", "upstream_invalid", "breaker_open", "deadline"
]

HopStage = Literal["tokenize", "queue", "infer", "prune"]  # a text's stages on one tier, in order
HopTiming = Literal[HopStage, "total"]
AnswerTiming = Literal["ensemble", "total"]
Stage = Literal[HopStage, "link", "ensemble"]  # and those of its whole way
HOP_STAGES: tuple[HopStage, ...] = get_args(HopStage)
STAGES: tuple[Stage, ...] = get_args(Stage)


def _readable(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty or blank")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is a lone surrogate, not text") from error
    return text


Text = Annotated[str, AfterValidator(_readable)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Ms = Annotated[float, Field(ge=0, le=1e9)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.+-]+$")]


class Message(BaseModel):
    """Strict: no unknown fields, no coercion, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPair(Message):
    text: Text
    text_pair: Text | None = None


class Options(Message):
    policy: Name | dict[str, Any] | None = Field(None, description="a policy's name, or {name, ...parameters}")
    max_tier: Name | None = Field(None, description="the deepest tier that may answer")
    deadline_ms: Annotated[float, Field(gt=0, le=600_000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | Name | None = Field(None, description="replays the draws")
    explain: bool = Field(False, description="add each exit's probabilities and each word's importance")


def _shape(value: object) -> str:
    """What an input is meant to be, so that an error speaks of that alone."""
    return "list" if isinstance(value, list) else "pair" if isinstance(value, dict | TextPair) else "one"


_One = Annotated[Text, Tag("one")]
_Pair = Annotated[TextPair, Tag("pair")]
_List = Annotated[list[Annotated[_One | _Pair, Discriminator(_shape)]], Tag("list")]


class ClassifyRequest(Message):
    inputs: Annotated[_One | _Pair | _List, Discriminator(_shape)] = Field(
        description="one text, one pair, or a list of them"
    )
    options: Options = Options()

    def pairs(self) -> list[TextPair]:
        """Every input as a pair, in order."""
        inputs = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return [TextPair(text=item) if isinstance(item, str) else item for item in inputs]


class LinkUse(Message):
    """The link that led to a hop. `from` is a Python keyword, hence the alias."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    source: Name = Field(alias="from")
    target: Name = Field(alias="to")
    backend: Literal["netem", "simulated", "none"]
    profile: str
    request_bytes: Count
    response_bytes: Count
    ms: Ms


class WordUse(Message):
    word: str
    importance: float | None  # null: the tier did not read it
    kept: bool


class Hop(Message):
    """One tier's part in an answer."""

    tier: Name
    card: str  # BUNDLE@DIGEST of the model card that answered
    exit_layer: Count
    layers: Count
    label: str
    probabilities: dict[str, Share]
    confidence: Share
    offload_probability: Share
    draw: Share | None = None
    offloaded_to: Name | None = None
    words_in: Count
    words_kept: Count | None = None
    weight: Share = 0.0
    truncated: bool
    link: LinkUse | None = None
    timings_ms: dict[HopTiming, Ms]
    exits: list[dict[str, Share]] | None = None  # with `explain`
    words: list[WordUse] | None = None  # with `explain`


class Result(Message):
    """One input's answer: the ensemble over its hops."""

    index: int
    label: str
    probabilities: dict[str, Share]
    confidence: Share
    tier: Name
    exit_layer: Count
    words_in: Count
    truncated: bool
    degraded: DegradedReason | None
    card_skew: bool = False  # a tier answered with another model card than the first one's
    hops: list[Hop]


class ClassifyResponse(Message):
    id: str
    model: str
    results: list[Result]
    timings_ms: dict[AnswerTiming, float]


class Visited(Message):
    """What a tier before this one said of a text."""

    tier: Name
    exit_layer: Count
    probabilities: dict[str, Share]


class InferRequest(Message):
    """Tier to tier. `target` names the tier that must answer itself; null lets the callee decide by its policy.

    `call` is new for every call, and the answer repeats it, so that no answer is taken for another call's. `visits` has
    the way of each text so far. It is left out unless the policy asks for it: a tier that does not know it refuses it.
    """

    version: int = CONTRACT_VERSION
    request_id: Name
    call: Name
    seed: Name
    indices: list[int]
    texts: list[TextPair]
    policy: dict[str, Any]
    target: Name | None = None
    max_tier: Name | None = None
    deadline_ms: float | None = None  # what remains
    explain: bool = False
    visits: list[list[Visited]] | None = Field(None, exclude_if=lambda visits: visits is None)


class InferredRow(Message):
    index: int  # that the request gave this text
    hops: list[Hop]  # from the callee on; empty where it could not read the text
    degraded: DegradedReason | None = None


class InferResponse(Message):
    version: int = CONTRACT_VERSION
    call: Name
    rows: list[InferredRow]
    total_ms: Ms  # the callee's own time for the call, its waiting for further tiers included


class Problem(Message):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] = []

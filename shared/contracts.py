"""What travels between client and tier, and between tiers. Times here are milliseconds; field names say so."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

CONTRACT_VERSION = 2
WAITING = "x-tierwise-waiting-s"  # header of every answer between tiers: seconds of work before the callee's model
DegradedReason = Literal[
    "upstream_timeout", "upstream_unavailable", "upstream_refused", "upstream_invalid", "breaker_open", "deadline"
]

HopStage = Literal["tokenize", "queue", "infer", "prune"]  # a text's stages on one tier, in order
HopTiming = Literal[HopStage, "total"]
AnswerTiming = Literal["ensemble", "total"]
Stage = Literal[HopStage, "link", "ensemble"]  # and those of its whole way
HOP_STAGES: tuple[HopStage, ...] = get_args(HopStage)
STAGES: tuple[Stage, ...] = get_args(Stage)


class Why(StrEnum):
    """Why an answer ended where it did; one of these, and nothing else."""

    SURE = "The tier that was asked was sure enough."
    DEEPEST = "The tier that was asked is the deepest that may answer."
    POLICY = "The policy fixed which tier answers."
    UNSURE_NEXT = "A tier was unsure and sent the text on, and the next tier answered."
    UNSURE_DEEPEST = "A tier was unsure and sent the text on, and the deepest tier that may answer decided."
    DRAWN_NEXT = "A tier was sure, but its draw sent the text on, and the next tier answered."
    DRAWN_DEEPEST = "A tier was sure, but its draw sent the text on, and the deepest tier that may answer decided."
    NOT_WORTH = "Going on was not worth its time, so the tier that was asked answered."
    GATED = "The gates let the tier that was asked answer."
    GATED_NEXT = "A gate sent the text on, and the next tier answered."
    GATED_DEEPEST = "A gate sent the text on, and the deepest tier that may answer decided."
    FAILED = "A further tier gave no answer, so the tiers that ran decided."
    DEADLINE = "The deadline left no time to go further, so the exits reached by then decided."


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
Joules = Annotated[float, Field(ge=0, le=1e9)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.+-]+$")]


class Message(BaseModel):
    """Strict: no unknown fields, no coercion, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def says(description: str, *examples: Any) -> Any:
    """A required field's description and examples, for the OpenAPI document."""
    return Field(description=description, examples=list(examples))


class TextPair(Message):
    """Two texts that are read together, such as a question and a passage."""

    text: Text = says("the text, or the first of a pair", "It was not bad at all.")
    text_pair: Text | None = Field(None, description="the second of a pair", examples=["The film was good."])


class Options(Message):
    """How a request is answered."""

    policy: Name | dict[str, Any] | None = Field(
        None, description="a policy's name, or {name, ...parameters}", examples=["edge-only"]
    )
    max_tier: Name | None = Field(None, description="the deepest tier that may answer", examples=["edge"])
    deadline_ms: Annotated[float, Field(gt=0, le=600_000)] | None = Field(
        None, description="milliseconds until the answer must be there", examples=[500.0]
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | Name | None = Field(
        None, description="replays the draws", examples=[4]
    )
    explain: bool = Field(
        False, description="add every exit, every word's part and the rules in force", examples=[True]
    )


def _shape(value: object) -> str | None:
    """What an input is meant to be, so that an error speaks of that alone; null: nothing that is taken."""
    shapes = {"one": str, "pair": dict | TextPair, "list": list}
    return next((shape for shape, types in shapes.items() if isinstance(value, types)), None)


def one_of(shape: Callable[[object], str | None], expected: str) -> Discriminator:
    """Chooses a member of a union by its shape; whatever has none is told what is expected."""
    return Discriminator(shape, custom_error_type="shape", custom_error_message=f"expected {expected}")


_OBJECT = "an object with text and, for a pair, text_pair"
_One = Annotated[Text, Tag("one")]
_Pair = Annotated[TextPair, Tag("pair")]
_List = Annotated[list[Annotated[_One | _Pair, one_of(_shape, f"a text, or {_OBJECT}")]], Tag("list")]


class ClassifyRequest(Message):
    """Texts to classify."""

    inputs: Annotated[_One | _Pair | _List, one_of(_shape, f"a text, a list of texts, or {_OBJECT}")] = says(
        "one text, one pair, or a list of them", "Not bad, not good.", ["A joy.", "Dull."]
    )
    options: Options = Field(Options(), description="how they are answered", examples=[{"seed": 4, "explain": True}])

    def pairs(self) -> list[TextPair]:
        """Every input as a pair, in order."""
        inputs = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return [TextPair(text=item) if isinstance(item, str) else item for item in inputs]


class LinkUse(Message):
    """The link that led to a hop. `from` is a Python keyword, hence the alias."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    source: Name = Field(alias="from", description="the tier that asked", examples=["end"])
    target: Name = Field(alias="to", description="the tier that was asked", examples=["edge"])
    backend: Literal["netem", "simulated", "none"] = says("what enforces the profile", "simulated")
    profile: str = says("the link's profile", "5g-nsa")
    request_bytes: Count = says("bytes of the request's body", 584)
    response_bytes: Count = says("bytes of the answer's body", 544)
    ms: Ms = says("milliseconds on the link, there and back", 45.727)
    modelled_joules: Joules | None = Field(  # left out where null: tiers that do not know it read such links
        None,
        description="what the call took of the asking device's radio, by the power model of the profile; not measured",
        examples=[0.0632],
        exclude_if=lambda value: value is None,
    )


class WordUse(Message):
    """A word's part in a hop."""

    word: str = says("the word as written", "lovely.")
    importance: float | None = says("attention that it received, which pruning goes by; null: not read", 31.9062)
    share: float | None = Field(
        None, description="its signed share of the decision: positive speaks for the hop's label", examples=[0.2113]
    )
    kept: bool = says("whether pruning keeps it", True)


class Exit(Message):
    """What one exit said."""

    exit: Count = says("the layer after which the exit stands, from 1", 3)
    probabilities: dict[str, Share] = says("calibrated, by label", {"negative": 0.514108, "positive": 0.485892})
    confidence: Share = says("the largest of them", 0.514108)
    scores: dict[Name, float] | None = Field(  # left out where null: tiers that do not know it read such hops
        None,
        description="what each action scored under a policy with gates; with `explain`",
        examples=[{"answer": -0.31, "edge": -1.2, "cloud": 0.8}],
        exclude_if=lambda value: value is None,
    )


class Rule(Message):
    """A rule in force."""

    name: str = says("the rule's name", "similarity")
    parameters: dict[str, int | float | str] = says("its parameters", {"theta": 0.01, "patience": 3})


class Explained(Message):
    """The rules in force on a tier, and the part of its decision that is no word's."""

    exit_rule: Rule | None = says("when a text may leave the encoder; null: after the last layer")
    offload_rule: Rule | None = says("when a text is sent on once the model has read it; null: never")
    special_share: float = says("signed share of the decision that special tokens have", -0.0312)
    bias_share: float = says("signed share of the decision that the exit's bias has", 0.0044)


class Speculation(Message):
    """A call to a further tier that began before this tier's answer."""

    to: Name = says("the tier that was asked", "cloud")
    layer: Count = says("the layer whose exit told so", 4)
    used: bool = says("whether the text was sent there in the end; else the call was cancelled", True)
    request_bytes: Count = says("bytes of the request's body; of a call that was cancelled, less may have left", 584)


class Hedge(Message):
    """Two calls that were made for one answer: the first was late, so another way was taken too."""

    first: Name = says("the tier that was called first", "edge")
    second: Name = says("the tier that was called when that was late", "cloud")
    after_ms: Ms = says("milliseconds between the two", 161.2)
    won: bool = says("whether the second call answered; the other one was cancelled", True)
    request_bytes: Count = says("bytes of the cancelled call's body; less may have left", 584)
    modelled_joules: Joules | None = Field(
        None,
        description="what the cancelled call took, as of a link",
        examples=[0.2],
        exclude_if=lambda value: value is None,
    )


class Onward(Message):
    """How a text went on where its text or its state could go, and what either way was estimated to take."""

    by: Literal["text", "state"] = says("what the next tier went by", "state")
    layer: Count = says("the layer after which the state is", 3)
    text_ms: Ms = says("estimated milliseconds with the text: sent, and run through all layers", 21.4)
    state_ms: Ms = says("estimated milliseconds with the state: sent, and run through the layers that remain", 17.9)


class Hop(Message):
    """One tier's part in an answer."""

    tier: Name = says("the tier", "end")
    card: str = says("BUNDLE@DIGEST of the model card that answered", "collaborative@425a1488acb1")
    exit_layer: Count = says("the layer after which the text left the encoder", 4)
    layers: Count = says("layers that the tier has", 6)
    label: str = says("the tier's own label", "negative")
    probabilities: dict[str, Share] = says("calibrated, by label", {"negative": 0.527501, "positive": 0.472499})
    confidence: Share = says("the largest of them", 0.527501)
    offload_probability: Share = says("the chance that the text is sent on", 1.0)
    draw: Share | None = Field(None, description="below the chance: sent on", examples=[0.19310251086936195])
    offloaded_to: Name | None = Field(None, description="the tier that was asked next; null: none", examples=["edge"])
    words_in: Count = says("words that the tier got", 19)
    words_kept: Count | None = Field(None, description="words that it sent on; null: it sent none", examples=[19])
    weight: Share = Field(0.0, description="its weight in the ensemble", examples=[0.0686])
    truncated: bool = says("whether it read only the head and the tail", False)
    link: LinkUse | None = Field(None, description="the link that led here; null: this tier was asked first")
    speculation: Speculation | None = Field(  # left out where null: tiers that do not know it read such hops
        None, description="a call that began before this tier's answer", exclude_if=lambda value: value is None
    )
    hedge: Hedge | None = Field(  # left out where null
        None, description="two calls led here, not one", exclude_if=lambda value: value is None
    )
    onward: Onward | None = Field(  # left out where null: tiers that do not know it read such hops
        None, description="text or state: how it went on, where both could", exclude_if=lambda value: value is None
    )
    timings_ms: dict[HopTiming, Ms] = says("milliseconds by stage", {"infer": 46.067, "total": 54.792})
    exits: list[Exit] | None = Field(None, description="every exit so far, oldest first; with `explain`")
    words: list[WordUse] | None = Field(None, description="every word's part; with `explain`")
    explained: Explained | None = Field(  # left out where null: tiers that do not know it read such hops
        None, description="the rules in force; with `explain`", exclude_if=lambda value: value is None
    )


class Combination(Message):
    """How the hops became one answer."""

    weights: dict[Name, Share] = says("each tier's weight", {"end": 0.0686, "edge": 0.9314})
    overruled: bool = says("whether the answer's label is not the last tier's", False)


class Result(Message):
    """One input's answer: the ensemble over its hops."""

    index: int = says("the input's place in the request, from 0", 0)
    label: str = says("the label with the largest probability", "positive")
    probabilities: dict[str, Share] = says("the ensemble's, by label", {"negative": 0.059621, "positive": 0.940379})
    confidence: Share = says("the largest of them", 0.940379)
    why: Annotated[Why, Field(strict=False)] = says("why the answer ended where it did", Why.UNSURE_NEXT.value)
    tier: Name = says("the deepest tier that ran", "edge")
    exit_layer: Count = says("the layer after which the text left that tier", 6)
    words_in: Count = says("words of the input", 19)
    truncated: bool = says("whether a tier read only the head and the tail", False)
    degraded: DegradedReason | None = says("why less was done than planned; null: nothing was missing", None)
    card_skew: bool = Field(False, description="whether tiers answered with different model cards", examples=[False])
    modelled_joules: Joules | None = Field(
        None,
        description="the sum over the links on its way that have a power model; not measured; left out where none has",
        examples=[0.0632],
        exclude_if=lambda value: value is None,
    )
    ensemble: Combination = says("how the hops were combined")
    hops: list[Hop] = says("one per tier that ran its model, in order")


class ClassifyResponse(Message):
    """The answers to a request."""

    id: str = says("the request's id", "be36780ed1d54b6ca3c40994d83c5d42")
    model: str = says("the model card and the engine of the tier that was asked", "collaborative@425a1488acb1")
    policy: dict[str, Any] = says("the policy in force, with all its parameters", {"name": "tabi", "steepness": 10.0})
    results: list[Result] = says("one per input, in order")
    timings_ms: dict[AnswerTiming, float] = says("milliseconds", {"ensemble": 0.163, "total": 336.099})


class ExitEvent(Exit):
    """A stream's event `exit`: a text has reached an exit."""

    index: int = says("the input's place in the request, from 0", 0)
    tier: Name = says("the tier that runs its model", "end")
    met: bool | None = says("whether the exit rule accepts it; null: no rule was asked, as at the last exit", False)
    ms: Ms = says("milliseconds since the tier has read the request", 12.4)


class HopEvent(Message):
    """A stream's event `hop`: a tier is done with a text."""

    index: int = says("the input's place in the request, from 0", 0)
    hop: Hop = says("as in the answer; its `weight` is known with the answer only, and 0 here")
    ms: Ms = says("milliseconds since the tier has read the request", 54.9)


class Visited(Message):
    """What a tier before this one said of a text."""

    tier: Name = says("the tier", "end")
    exit_layer: Count = says("the layer after which the text left the encoder", 4)
    probabilities: dict[str, Share] = says("calibrated, by label", {"negative": 0.527501, "positive": 0.472499})


class InferRequest(Message):
    """Tier to tier. `target` names the tier that must answer itself; null lets the callee decide by its policy.

    `call` is new for every call, and the answer repeats it, so that no answer is taken for another call's. `visits` has
    the way of each text so far. It is left out unless the policy asks for it: a tier that does not know it refuses it.
    """

    version: int = Field(CONTRACT_VERSION, description="of this contract", examples=[CONTRACT_VERSION])
    request_id: Name = says("the client's request", "be36780ed1d54b6ca3c40994d83c5d42")
    call: Name = says("names this call", "9c1185a5c5e9fc54")
    seed: Name = says("of the draws", "4")
    indices: list[int] = says("each text's place in the client's request", [0])
    texts: list[TextPair] = says("the texts, or what pruning left of them", [{"text": "Not bad, not good."}])
    policy: dict[str, Any] = says("the policy with its parameters", {"name": "collaborative"})
    target: Name | None = Field(None, description="the tier that must answer itself", examples=["cloud"])
    max_tier: Name | None = Field(None, description="the deepest tier that may answer", examples=["edge"])
    deadline_ms: float | None = Field(None, description="milliseconds that remain", examples=[320.5])
    explain: bool = Field(False, description="add every exit and word", examples=[False])
    visits: list[list[Visited]] | None = Field(
        None,
        description="the way of each text so far, where the policy asks for it",
        examples=[[[{"tier": "end", "exit_layer": 4, "probabilities": {"negative": 0.5275, "positive": 0.4725}}]]],
        exclude_if=lambda visits: visits is None,
    )


class InferredRow(Message):
    """A text's hops, from the callee on."""

    index: int = says("that the request gave this text", 0)
    hops: list[Hop] = says("from the callee on; empty where it could not read the text")
    degraded: DegradedReason | None = Field(None, description="why less was done than planned", examples=["deadline"])


class InferResponse(Message):
    """A tier's answer to a tier."""

    version: int = Field(CONTRACT_VERSION, description="of this contract", examples=[CONTRACT_VERSION])
    call: Name = says("the request's", "9c1185a5c5e9fc54")
    rows: list[InferredRow] = says("one per text, in order")
    total_ms: Ms = says("the callee's own time for the call, its waiting for further tiers included", 228.9)


class LinkChange(Message):
    """One change of a link: another profile, a trace over it, or a cut. A profile ends a trace and a cut."""

    model_config = ConfigDict(
        json_schema_extra={"minProperties": 1, "maxProperties": 1, "examples": [{"profile": "lte"}, {"cut": True}]}
    )

    profile: Name | None = Field(
        None, description="a link profile, or a path over several joined by +", examples=["lte", "5g-nsa+metro"]
    )
    cut: bool | None = Field(None, description="whether the link lets nothing through", examples=[True])
    trace: Name | None = Field(
        None, description="a trace that a simulated link follows from its start, over its profile", examples=["driving"]
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.profile, self.cut, self.trace].count(None) != 2:
            raise ValueError('expected either {"profile": NAME}, {"trace": NAME} or {"cut": true or false}')
        return self


class ReplicaState(Message):
    """One replica of the tier that a link leads to."""

    address: str = says("where it is", "10.0.0.7")
    breaker: Literal["open", "closed"] = says("open: it is not asked, and only probed", "closed")
    waiting_s: float | None = says("seconds of work that wait there; null: it said nothing of late", 0.08)
    under_way: int = says("calls of this tier that it has not answered", 1)


class LinkState(Message):
    """A link of a tier, as `/info` lists it."""

    to: Name = says("the tier that it leads to", "edge")
    url: str = says("that tier's address", "http://127.0.0.1:8081")
    backend: Literal["netem", "simulated", "none"] = says("what enforces the profile now", "simulated")
    profile: str = says("the profile in force", "lte")
    trace: str | None = Field(  # left out where null
        None,
        description="the trace that it follows over its profile",
        examples=["driving"],
        exclude_if=lambda value: value is None,
    )
    cut: bool = says("whether an operator has cut it", False)
    breaker: Literal["open", "closed"] = says("open: that tier failed again and again, and is only probed", "closed")
    replicas: list[ReplicaState] | None = Field(  # left out where null
        None,
        description="the replicas of that tier, where it has several",
        examples=[None],
        exclude_if=lambda value: value is None,
    )


class Problem(Message):
    """An error: a problem document (RFC 9457)."""

    type: str = says("names the kind of error", "urn:tierwise:bad-input")
    title: str = says("the kind in words", "Cannot classify this")
    status: int = says("the HTTP status", 422)
    detail: str = says("what was wrong and what to do", "inputs is empty: send at least one text")
    request_id: str = says("the request's id", "be36780ed1d54b6ca3c40994d83c5d42")
    errors: list[dict[str, str]] = Field([], description="every problem of a body, each with its place", examples=[[]])

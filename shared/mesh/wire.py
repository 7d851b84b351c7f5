"""What nodes of a mesh say to each other: a text's state, its answer, a report.

POST /v1/continue   a frame of `Going` as JSON and one packed state (`shared/model/state.py`); its answer is
                    `Answered`, sent once the text is answered
POST /v1/report     `Asking` as JSON; its answer is `Reported`
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import BadState, in_words
from shared.mesh.node import Report
from shared.model.state import frame, unframe

VERSION = 1
BINARY = "application/octet-stream"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class Message(BaseModel):
    """Part of the wire: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Going(Message):
    """The head of a text that goes on: which one, from which segment, up to which confidence."""

    version: int = VERSION
    call: Name
    id: Name
    text_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    segment: int = Field(ge=1, le=1000)
    threshold: float = Field(ge=0, le=100, allow_inf_nan=False)
    sender: Name


class Step(Message):
    """A segment that ran: on which node, which one, counted from 1, and how long it took."""

    node: Name
    segment: int = Field(ge=1)
    ms: float


class Reported(Message):
    """A node's report: I, O, the seconds of work in I, and the first and last segment that it holds, from 1."""

    call: Name
    waiting: Count
    leaving: Count
    work_s: Seconds
    first: Annotated[int, Field(ge=1, le=1000)]
    last: Annotated[int, Field(ge=1, le=1000)]

    @property
    def report(self) -> Report:
        return Report(self.waiting, self.leaving, self.work_s, range(self.first - 1, self.last))

    @classmethod
    def of(cls, call: str, report: Report) -> Reported:
        """A node's own report as it is told."""
        assert report.held is not None
        told = {**vars(report), "first": report.held.start + 1, "last": report.held.stop}
        del told["held"]
        return cls(call=call, **told)


class Answered(Message):
    """A text's answer: what its exit said, after which layer, by which way; and the report of who sends it.

    `held_ms`: from the text's arrival at that node to this answer.
    """

    call: Name
    probabilities: list[Ratio] = Field(min_length=2)
    exit_layer: int = Field(ge=1)
    path: list[Step] = Field(min_length=1)
    held_ms: float = Field(ge=0, allow_inf_nan=False)
    reported: Reported


class Asking(Message):
    """A node asks another for its report."""

    call: Name
    sender: Name


def framed(going: Going, packed: bytes) -> bytes:
    """The body of `/v1/continue`."""
    return frame(going.model_dump_json().encode(), [packed])


def unframed(body: bytes) -> tuple[Going, memoryview]:
    """The head and the packed state of a body.

    Raises:
        BadState: it is no such body.
    """
    head, states = unframe(body)
    try:
        going = Going.model_validate_json(head)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        place = ": ".join(("the head of the state", *map(str, first["loc"])))
        raise BadState(f"{place}: {in_words(first['type'], first['msg'])}") from None
    if going.version != VERSION:
        raise BadState(f"a state of mesh version {going.version}; this node speaks {VERSION}")
    if len(states) != 1:
        raise BadState(f"a body with {len(states)} states; a node goes on with one")
    return going, states[0]

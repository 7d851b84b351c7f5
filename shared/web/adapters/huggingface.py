"""text-embeddings-inference's `POST /predict`, and the task text-classification of Hugging Face's API at `POST /`.

    /predict   "a", or the pair ["a", "b"]      [{label, score}, ...], likeliest first
               [["a"], ["a", "b"], ...]         a list of such lists
    /          "a"                              [[{label, score}, ...]]
               ["a", {text, text_pair}, ...]    a list of such lists

Left out: raw scores, and functions other than softmax. An answer is a mean of calibrated probabilities, no logits.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Response
from pydantic import Field, RootModel, Tag

from shared.contracts import ClassifyResponse, Message, Problem, Result, one_of, says
from shared.errors import BadInput
from shared.web.adapters.base import JSON, Adapter, marks
from shared.web.body import parse, validate

_KINDS = {429: "overloaded", 500: "backend", 503: "unhealthy"}  # of errors, by status; the others are "validation"


def _shape(value: object) -> str | None:
    if not isinstance(value, list):
        return "one" if isinstance(value, str) else None
    return "batch" if value and isinstance(value[0], list) else "pair"


_Sides = Annotated[list[str], Field(min_length=1, max_length=2)]


class PredictRequest(Message):
    """A request of text-embeddings-inference."""

    inputs: Annotated[
        Annotated[str, Tag("one")] | Annotated[_Sides, Tag("pair")] | Annotated[list[_Sides], Tag("batch")],
        one_of(_shape, "a text, a pair as a list of two texts, or a list of such lists"),
    ] = says("one text, one pair as a list of two, or a batch of such lists", "A joy.", [["A joy."], ["Dull."]])
    raw_scores: Literal[False] = Field(False, description="true is refused: there are no raw scores", examples=[False])
    truncate: bool | None = Field(
        None, description="false: refuse texts that a tier would shorten; else they are shortened", examples=[True]
    )


class TaskParameters(Message):
    """How the scores of a task are given."""

    function_to_apply: Literal["softmax"] | None = Field(None, description="softmax, or null", examples=["softmax"])
    top_k: Annotated[int, Field(ge=1)] | None = Field(None, description="how many labels; null: all", examples=[1])


class TaskRequest(Message):
    """A request of Hugging Face's API for text classification."""

    inputs: Any = says("one text, one {text, text_pair}, or a list of them", "A joy.", ["A joy.", "Dull."])
    parameters: TaskParameters = Field(TaskParameters(), description="how scores are given", examples=[{"top_k": 1}])


class Prediction(Message):
    """A label and its probability."""

    label: str = says("the label", "positive")
    score: float = says("its calibrated probability", 0.940379)


class PredictResponse(RootModel[list[Prediction] | list[list[Prediction]]]):
    """Predictions of one input, or of each of a batch, likeliest first."""


class TaskResponse(RootModel[list[list[Prediction]]]):
    """Predictions of each input, likeliest first."""


class TeiError(Message):
    """An error, as text-embeddings-inference tells it."""

    error: str = says("what was wrong and what to do", "inputs is empty: send at least one text")
    error_type: str = says("its kind: validation, overloaded, unhealthy or backend", "validation")


def _ranked(result: Result, top: int | None = None) -> list[Prediction]:
    ranked = sorted(result.probabilities.items(), key=lambda pair: -pair[1])
    return [Prediction(label=label, score=score) for label, score in ranked[:top]]


def _text(sides: list[str]) -> dict[str, str]:
    return dict(zip(("text", "text_pair"), sides, strict=False))


class _Tei(Adapter):
    def refuse(self, problem: Problem) -> TeiError:
        return TeiError(error=problem.detail, error_type=_KINDS.get(problem.status, "validation"))


class Predict(_Tei):
    """A request to `/predict`."""

    def ask(self, body: bytes) -> dict[str, Any]:
        asked = validate(PredictRequest, parse(body))
        self._shape, self._truncate = _shape(asked.inputs), asked.truncate
        if isinstance(asked.inputs, str):
            return {"inputs": asked.inputs}
        if self._shape == "pair":
            return {"inputs": _text([str(side) for side in asked.inputs])}
        return {"inputs": [_text(list(sides)) for sides in asked.inputs]}

    def tell(self, answer: ClassifyResponse) -> Response:
        cut = [str(result.index) for result in answer.results if result.truncated]
        if cut and self._truncate is False:
            raise BadInput(f"input {', '.join(cut)} is longer than a tier reads: shorten it, or leave truncate out")
        rows = [_ranked(result) for result in answer.results]
        content = PredictResponse(rows if self._shape == "batch" else rows[0])
        return Response(content.model_dump_json(), headers=marks(answer), media_type=JSON)


class Task(_Tei):
    """A request to `/`."""

    def ask(self, body: bytes) -> dict[str, Any]:
        asked = validate(TaskRequest, parse(body))
        self._top = asked.parameters.top_k
        return {"inputs": asked.inputs}

    def tell(self, answer: ClassifyResponse) -> Response:
        content = TaskResponse([_ranked(result, self._top) for result in answer.results])
        return Response(content.model_dump_json(), headers=marks(answer), media_type=JSON)


REQUESTS = (PredictRequest, TaskRequest)

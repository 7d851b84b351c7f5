"""The Open Inference Protocol, version 2 (KServe, Triton), over HTTP, with its extension of binary tensors.

    inputs    text BYTES [N] or [N, 1]; text_pair the same, where texts come in pairs
    outputs   label BYTES [N], confidence FP32 [N], probabilities FP32 [N, C], tier BYTES [N]; labels BYTES [C]

`parameters` of a request are options of ours. Left out: shared memory, compression, sequences, priorities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from pydantic import Field

from shared.contracts import ClassifyResponse, Message, Problem, says
from shared.errors import BadInput, NoSuchPath, UnsupportedMedia
from shared.web.adapters.base import JSON, Adapter, marks
from shared.web.adapters.tensors import V2Input, V2Output, packed, texts_of
from shared.web.body import parse, validate

BINARY = "application/octet-stream"
HEAD = "inference-header-content-length"  # bytes of the JSON that binary tensors stand behind
OPTIONS = ("policy", "seed", "deadline_ms", "max_tier")
_TYPES = {"label": "BYTES", "confidence": "FP32", "probabilities": "FP32", "tier": "BYTES", "labels": "BYTES"}


class V2Wanted(Message):
    """An output that is asked for."""

    name: str = says("the output", "label")
    parameters: dict[str, bool] = Field(
        {}, description="binary_data: whether it comes behind the JSON", examples=[{"binary_data": False}]
    )


class V2InferRequest(Message):
    """A request of the Open Inference Protocol."""

    id: str | None = Field(None, description="repeated by the answer", examples=["7"])
    parameters: dict[str, Any] = Field(
        {}, description=f"{', '.join(OPTIONS)}; binary_data_output", examples=[{"policy": "edge-only"}]
    )
    inputs: list[V2Input] = says(
        "text, and text_pair for pairs", [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["A joy."]}]
    )
    outputs: list[V2Wanted] = Field([], description="outputs that are asked for; none: all", examples=[[]])


class V2InferResponse(Message):
    """An answer of the Open Inference Protocol."""

    model_name: str = says("the bundle", "collaborative")
    model_version: str = says("the digest of its model card", "425a1488acb1")
    id: str | None = Field(None, description="the request's", examples=["7"])
    outputs: list[V2Output] = says(
        "the outputs", [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["positive"]}]
    )


class V2Tensor(Message):
    """A tensor that a model takes or gives."""

    name: str = says("its name", "text")
    datatype: str = says("BYTES or FP32", "BYTES")
    shape: list[int] = says("its shape; -1: any length", [-1])


class V2Model(Message):
    """What a model takes and gives."""

    name: str = says("the bundle", "collaborative")
    versions: list[str] = says("the digest of its model card", ["425a1488acb1"])
    platform: str = says("the engine", "tierwise_openvino")
    inputs: list[V2Tensor] = says("its inputs; text_pair may be left out", [])
    outputs: list[V2Tensor] = says("its outputs", [])


class V2Ready(Message):
    """Whether a tier, or its model, takes requests."""

    name: str | None = Field(None, description="the model, if one was asked for", examples=["collaborative"])
    ready: bool = says("true", True)


class V2Error(Message):
    """An error, as the Open Inference Protocol tells it."""

    error: str = says("what was wrong and what to do", "inputs is empty: send at least one text")


def described(*, name: str, version: str, platform: str, labels: int) -> V2Model:
    """A bundle as a model of the protocol, with its number of labels."""
    shapes = {"probabilities": [-1, labels], "labels": [labels]}
    inputs = [V2Tensor(name=name, datatype="BYTES", shape=[-1]) for name in ("text", "text_pair")]
    outputs = [V2Tensor(name=name, datatype=kind, shape=shapes.get(name, [-1])) for name, kind in _TYPES.items()]
    return V2Model(name=name, versions=[version], platform=platform, inputs=inputs, outputs=outputs)


def check_model(model: V2Model, path: Mapping[str, str]) -> None:
    """Whether a path's `name` and `version`, if it has them, are the model's.

    Raises:
        NoSuchPath: they are not.
    """
    if path.get("name", model.name) != model.name or path.get("version", model.versions[0]) != model.versions[0]:
        raise NoSuchPath(f"this tier has the model {model.name}, version {model.versions[0]}, and no other")


class Infer(Adapter):
    """A request to `/v2/models/NAME/infer`."""

    media = frozenset({JSON, BINARY, ""})  # tritonclient names none

    def __init__(self, model: V2Model, request: Request, most: int) -> None:
        self._model, self._headers, self._path, self._most = model, request.headers, request.path_params, most

    def refuse(self, problem: Problem) -> V2Error:
        return V2Error(error=problem.detail)

    def ask(self, body: bytes) -> dict[str, Any]:
        check_model(self._model, self._path)
        if "origin" in self._headers and "content-type" not in self._headers:  # no preflight would have asked for it
            raise UnsupportedMedia("content type missing; a browser's page must send application/json")
        length = self._headers.get(HEAD, str(len(body)))
        if not (length.isdecimal() and len(length) < 10 and int(length) <= len(body)):
            raise BadInput(f"{HEAD}: expected the number of bytes of the JSON")
        asked = validate(V2InferRequest, parse(body[: int(length)]))
        parameters = dict(asked.parameters)
        self._id, self._wanted = asked.id, self._outputs(asked, bool(parameters.pop("binary_data_output", False)))
        if unknown := sorted(parameters.keys() - set(OPTIONS)):
            raise BadInput(f"parameters: {unknown[0][:50]} is none of {', '.join(OPTIONS)}")
        return {"inputs": self._texts(asked.inputs, body[int(length) :]), "options": parameters}

    def _outputs(self, asked: V2InferRequest, binary: bool) -> dict[str, bool]:
        """Every output that is asked for, and whether as bytes."""
        for output in asked.outputs:
            if output.name not in _TYPES or output.parameters.keys() - {"binary_data"}:
                raise BadInput(f"outputs: expected {', '.join(_TYPES)}, with no parameter but binary_data")
        wanted = {output.name: output.parameters.get("binary_data", binary) for output in asked.outputs}
        return wanted or dict.fromkeys(_TYPES, binary)

    def _texts(self, inputs: Sequence[V2Input], rest: bytes) -> list[dict[str, str]]:
        """The inputs' texts side by side; tensors behind the JSON stand in the order of the inputs."""
        if sorted(tensor.name for tensor in inputs) not in (["text"], ["text", "text_pair"]):
            raise BadInput("inputs: expected text, and text_pair for pairs")
        sides: dict[str, list[str]] = {}
        for tensor in inputs:
            size = tensor.parameters.get("binary_data_size")
            if tensor.parameters.keys() - {"binary_data_size"} or not (size is None or _fits(size, rest)):
                raise BadInput(f"{tensor.name}: expected no parameter but binary_data_size, as the body has it")
            raw, rest = (None, rest) if size is None else (rest[:size], rest[size:])
            sides[tensor.name] = texts_of(tensor, raw, self._most)
        if rest:
            raise BadInput("the body has more bytes than its inputs say")
        if len({len(texts) for texts in sides.values()}) > 1:
            raise BadInput("inputs: expected as many text_pair as text")
        return [dict(zip(sides, texts, strict=True)) for texts in zip(*sides.values(), strict=True)]

    def tell(self, answer: ClassifyResponse) -> Response:
        rows, labels = answer.results, list(answer.results[0].probabilities)
        values: dict[str, list[str] | list[float]] = {
            "label": [row.label for row in rows],
            "confidence": [row.confidence for row in rows],
            "probabilities": [row.probabilities[label] for row in rows for label in labels],
            "tier": [row.tier for row in rows],
            "labels": list(labels),
        }
        shapes = {"probabilities": [len(rows), len(labels)], "labels": [len(labels)]}
        outputs, tail = list[V2Output](), b""
        for name, binary in self._wanted.items():
            raw = packed(values[name]) if binary else b""
            tail += raw
            output = V2Output(
                name=name,
                datatype=_TYPES[name],
                shape=shapes.get(name, [len(rows)]),
                parameters={"binary_data_size": len(raw)} if binary else None,
                data=None if binary else values[name],
            )
            outputs.append(output)
        head = V2InferResponse(
            model_name=self._model.name, model_version=self._model.versions[0], id=self._id, outputs=outputs
        )
        content = head.model_dump_json(exclude_none=True).encode()
        more = {HEAD: str(len(content))} if tail else {}
        return Response(content + tail, headers={**marks(answer), **more}, media_type=BINARY if tail else JSON)


def _fits(size: object, rest: bytes) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= len(rest)

"""One encoder layer as an OpenVINO graph: x [B, S, D] and bias [1 or B, 1 or H, S or 1, S] to x [B, S, D].

Plain operations of the runtime's own set: its plugin fuses them (attention, layer norms, int8 maps). A map whose
input has a table is written as FakeQuantize on the input and int8 weights with their steps, which the plugin turns
into one int8 product. The second output, [B, S], is the attention that each token received from the `queries`
[B, 1, 1, S] that are 1, not 0 (padding). `plain` drops it, and then the plugin fuses the attention.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shared.model.base import Array, BaseConfig, Layer
from shared.model.quantization import Input, LayerTable, rounded, smoothed
from shared.model.runtime import op, ov

Node = Any  # the runtime does not type its nodes


def layer_graph(layer: Layer, config: BaseConfig, table: LayerTable | None) -> ov.Model:
    """A layer's graph; with a table, its linear maps are int8."""
    D, H = config.hidden, config.heads
    x = op.parameter([-1, -1, D], np.float32, name="x")
    bias = op.parameter([-1, -1, -1, -1], np.float32, name="bias")
    queries = op.parameter([-1, -1, -1, -1], np.float32, name="queries")
    maps = layer if table is None else smoothed(layer, table)

    def linear(part: str, source: Node, given: Input | None) -> Node:
        weight, offset = maps[part]
        return op.add(op.matmul(source, _weight(weight, given is not None), False, True), _row(offset))

    def feed(name: str, source: Node) -> tuple[Node, Input | None]:
        given = table[name] if table is not None else None
        return (source if given is None else _quantized(source, given, scale=name != "o")), given

    shape, order = _ints(0, 0, H, D // H), _ints(0, 2, 1, 3)
    source = feed("qkv", x)
    q, k, v = (op.transpose(op.reshape(linear(part, *source), shape, True), order) for part in "qkv")  # [B, H, S, D/H]
    scores = op.matmul(op.multiply(q, _number(1 / math.sqrt(D // H))), k, False, True)
    attention = op.softmax(op.add(scores, bias), -1)  # [B, H, S, S]
    mixed = op.matmul(attention, v, False, False)
    mixed = op.reshape(op.transpose(mixed, order), _ints(0, 0, D), True)
    hidden = _norm(op.add(linear("o", *feed("o", mixed)), x), maps["attention_norm"], config.eps)
    wide = op.gelu(linear("up", *feed("up", hidden)), "erf")
    out = _norm(op.add(linear("down", *feed("down", wide)), hidden), maps["norm"], config.eps)
    received = op.reduce_sum(op.matmul(queries, attention, False, False), _ints(1, 2), False)
    return _named(ov.Model([op.result(out), op.result(received)], [x, bias, queries], "layer"))


def plain(model: ov.Model) -> ov.Model:
    """A layer's graph without its second output."""
    model.remove_result(model.get_results()[1])
    model.remove_parameter(model.get_parameters()[2])
    return model


def _named(model: ov.Model) -> ov.Model:
    """Name outputs and nodes: the numbers of the runtime's own names go on from graph to graph."""
    for at, name in enumerate(("out", "received")):
        model.output(at).set_names({name})
    for at, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}-{at}")
    return model


def _weight(weight: Array, quantized: bool) -> Node:
    if not quantized:
        return _constant(weight)
    values, step = rounded(weight)
    return op.multiply(op.convert(_constant(values), "f32"), _constant(step))


def _quantized(x: Node, given: Input, *, scale: bool) -> Node:
    """Round x / smooth to 256 levels; without `scale` the division was moved elsewhere."""
    if scale:
        x = op.multiply(x, _row(1 / given.smooth))
    low, high = _number(given.low), _number(given.high)
    return op.fake_quantize(x, low, high, low, high, 256)


def _norm(x: Node, gain_bias: tuple[Array, Array], eps: float) -> Node:
    gain, bias = gain_bias
    return op.add(op.multiply(op.mvn(x, _ints(2), True, eps, "inside_sqrt"), _row(gain)), _row(bias))


def _constant(array: Array) -> Node:
    return op.constant(np.ascontiguousarray(array))


def _row(array: Array) -> Node:
    return _constant(array.reshape(1, 1, -1).astype(np.float32))


def _number(value: float) -> Node:
    return _constant(np.full((1, 1, 1), value, dtype=np.float32))


def _ints(*values: int) -> Node:
    return _constant(np.array(values, dtype=np.int64))

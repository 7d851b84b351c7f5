"""Layers as CUDA graphs: a layer is recorded once for a shape, and then starts with one launch instead of dozens.

A recording has fixed shapes and addresses. So a pass is padded to a bucket (tokens to a multiple of 32, rows to a power
of two), copied into the buffers of the bucket, replayed, and copied out. All layers share a bucket's buffers.

What cannot be recorded, the engine computes plainly: more than 32 rows, and shapes beyond the first 64. A shape never
makes room for another one: to record anew takes far longer than what a recording saves. Where recording fails, one log
line says so, and no further one is tried.

`capture` is the seam: it turns a step into its replay. `cuda_capture` records; a test on a CPU passes the step itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
import torch
from torch import Tensor

from shared.errors import one_line

TOKENS = 32  # a bucket's tokens are a multiple of it
MOST_ROWS, MOST_SHAPES = 32, 64

Step = Callable[[], None]
Capture = Callable[[Step], Step]
Shapes = tuple[tuple[int, ...] | None, ...]
log = structlog.get_logger()


@dataclass(frozen=True)
class Pass:
    """The tensors of the texts that still take part, or a bucket's buffers for them."""

    hidden: Tensor  # [B, S, D]: a layer's input, then its output
    bias: Tensor | None  # added to the attention scores; its first dimension is B, or 1 for all rows
    padding: Tensor | None  # [B, S]
    received: Tensor | None  # [B, S], which a layer adds to; null without importance
    logits: Tensor | None = None  # [B, C] of the exit after the layer that ran last


def bucket_tokens(tokens: int, most: int) -> int:
    """Tokens of the bucket; a bucket beyond what the encoder reads is not padded.

    >>> [bucket_tokens(tokens, 260) for tokens in (1, 32, 33, 257)]
    [32, 32, 64, 257]
    """
    padded = -(-tokens // TOKENS) * TOKENS
    return padded if padded <= most else tokens


def bucket_rows(rows: int) -> int:
    """Rows of the bucket: the next power of two.

    >>> [bucket_rows(rows) for rows in (1, 2, 3, 8, 9)]
    [1, 2, 4, 8, 16]
    """
    return 1 << (rows - 1).bit_length()


def cuda_capture() -> Capture:
    """Records on the current CUDA device. Recordings share memory: what one leaves is copied out before the next."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(step: Step) -> Step:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # that of the recording: libraries keep handles and memory by stream
            for _ in range(2):  # at first calls they choose kernels and take memory: that cannot be recorded
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            step()
        return graph.replay

    return capture


@dataclass
class _Bucket:
    buffers: Pass
    replays: dict[int, Step] = field(default_factory=dict)  # by layer
    bias: Tensor | None = None  # what the buffers hold: it stays the same from layer to layer
    padding: Tensor | None = None

    def fill(self, given: Pass) -> None:
        """Rows beyond those given keep what they had: no row reads another."""
        _copy(given.hidden, self.buffers.hidden)
        _copy(given.received, self.buffers.received)
        if given.bias is not self.bias:
            _copy(given.bias, self.buffers.bias)
            self.bias = given.bias
        if given.padding is not self.padding:
            _copy(given.padding, self.buffers.padding)
            self.padding = given.padding

    def result(self, given: Pass) -> Pass:
        rows, done = len(given.hidden), self.buffers
        received = None if done.received is None else done.received[:rows].clone()
        assert done.logits is not None
        return Pass(done.hidden[:rows].clone(), given.bias, given.padding, received, done.logits[:rows].clone())


class Graphs:
    """Recorded layers by shape. `step` runs layer `n` on buffers, and writes hidden, received and logits in place."""

    def __init__(
        self, step: Callable[[int, Pass], None], capture: Capture, *, classes: int, most_shapes: int = MOST_SHAPES
    ) -> None:
        self._step, self._capture, self._classes, self._most = step, capture, classes, most_shapes
        self._buckets: dict[Shapes, _Bucket] = {}
        self._broken = False

    def layer(self, n: int, given: Pass) -> Pass | None:
        """What layer `n` makes of a pass, in tensors of its own; null where it has to be computed plainly."""
        if self._broken or len(given.hidden) > MOST_ROWS:
            return None
        try:
            bucket = self._recorded(n, given)
        except RuntimeError as error:  # torch's own: no memory, or a call that cannot be recorded
            self._broken = True
            self._buckets.clear()
            log.warning("cuda_graphs_off", layer=n, shape=list(given.hidden.shape), error=one_line(error))
            return None
        if bucket is None:
            return None
        bucket.fill(given)
        bucket.replays[n]()
        return bucket.result(given)

    def _recorded(self, n: int, given: Pass) -> _Bucket | None:
        """The bucket of a pass, with layer `n` recorded; null if all buckets are taken by other shapes."""
        wide = bucket_rows(len(given.hidden))
        tensors = (given.hidden, given.bias, given.padding, given.received)
        shapes = tuple(None if t is None else _widened(t, len(given.hidden), wide) for t in tensors)
        if shapes not in self._buckets:
            if len(self._buckets) == self._most:
                return None
            self._buckets[shapes] = self._empty(given, wide)
        bucket = self._buckets[shapes]
        if n not in bucket.replays:
            bucket.replays[n] = self._capture(lambda: self._step(n, bucket.buffers))
        return bucket

    def _empty(self, given: Pass, wide: int) -> _Bucket:
        def buffer(tensor: Tensor) -> Tensor:
            return tensor.new_zeros(_widened(tensor, len(given.hidden), wide))

        return _Bucket(
            Pass(
                buffer(given.hidden),
                None if given.bias is None else buffer(given.bias),
                None if given.padding is None else buffer(given.padding),
                None if given.received is None else buffer(given.received),
                given.hidden.new_zeros((wide, self._classes), dtype=torch.float32),
            )
        )


def _widened(tensor: Tensor, rows: int, wide: int) -> tuple[int, ...]:
    """The shape of a tensor's buffer; one row for all stays one."""
    return (wide if len(tensor) == rows else 1, *tensor.shape[1:])


def _copy(given: Tensor | None, buffer: Tensor | None) -> None:
    if given is not None and buffer is not None:
        buffer[: len(given)].copy_(given)

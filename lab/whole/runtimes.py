"""Whole models that were built (`build.py`), each ready to answer on its runtime. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from shared.model.base import Array
from shared.model.openvino_engine import capabilities, core
from shared.model.words import Encoded

INPUTS = ("input_ids", "attention_mask")
ONNXRUNTIME, BF16, INT8 = "onnxruntime int8", "openvino bf16", "openvino int8"
FILES = {ONNXRUNTIME: "int8.onnx", BF16: "whole.xml", INT8: "int8.xml"}

Inputs = dict[str, Array]  # int64 [B, S], by the names of INPUTS
Rival = Callable[[Inputs], Array]  # logits [B, C]


def inputs_of(texts: Sequence[Encoded], pad_id: int, *, multiple: int = 1) -> Inputs:
    """Ids and mask of a padded batch, whose length is a multiple of this."""
    S = -(-max(len(text.ids) for text in texts) // multiple) * multiple
    ids = np.full((len(texts), S), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), S), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)], mask[row, : len(text.ids)] = text.ids, 1
    return dict(zip(INPUTS, (ids, mask), strict=True))


def runnable() -> list[str]:
    """The built models that this processor can run: bf16 only where it has it."""
    return [name for name in FILES if name != BF16 or "BF16" in capabilities()]


def load(name: str, folder: Path, *, threads: int) -> Rival:
    """The model of this name in the folder that `build.py` made; one call at a time."""
    path = folder / FILES[name]
    return _on_onnxruntime(path, threads) if name == ONNXRUNTIME else _on_openvino(path, threads)


def _on_onnxruntime(path: Path, threads: int) -> Rival:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, given)[0]


def _on_openvino(path: Path, threads: int) -> Rival:
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if "BF16" in capabilities() else "f32",
    }
    request = core().compile_model(path, "CPU", config).create_infer_request()

    def answer(given: Inputs) -> Array:
        request.infer(given, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return answer

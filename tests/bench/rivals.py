"""What a user would run instead: the same classifier with its last exit alone, exported to other runtimes.

    transformers fp32    its own model with its fastest attention: SDPA for BERT, eager for MPNet (it has no other)
    onnxruntime int8     torch.onnx.export with dynamic axes, then quantize_dynamic per channel
    openvino bf16        the whole model in one graph, where the processor has bfloat16
    openvino int8        the same graph after nncf.quantize for transformers

All have one thread, and adapters merged. Kept in CACHE/rivals/DIGEST, which names weights, texts and versions. A rival
gets ids and a mask that are made already; our encoder embeds its tokens while the clock runs.
Left out: GPUs, ONNX Runtime's transformer fusions (no faster than the plain export on our models), torch.compile.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.built import Recipe
from shared.model.classifier import Trained, read_trained
from shared.model.weights import cache_dir, scratch
from shared.model.words import Encoded

FORMAT = 1
PACKAGES = ("onnx", "onnxruntime", "nncf")  # the extra `rivals`
INPUTS = ("input_ids", "attention_mask")
TRANSFORMERS, ONNXRUNTIME, BF16, INT8 = "transformers fp32", "onnxruntime int8", "openvino bf16", "openvino int8"
FILES = {ONNXRUNTIME: "int8.onnx", BF16: "whole.xml", INT8: "int8.xml"}

Inputs = dict[str, Array]  # int64 [B, S], by the names of INPUTS
Rival = Callable[[Inputs], Array]  # logits [B, C]


def silence() -> None:
    """Keep OpenVINO and NNCF from reporting their use to their makers; before the first import of either."""
    sys.modules["openvino_telemetry"] = None  # as if it were not installed


def versions() -> dict[str, str]:
    """The libraries that take part.

    Raises:
        BadSetting: rivals that are not installed.
    """
    try:
        return {name: version(name) for name in (*PACKAGES, "openvino", "torch", "transformers")}
    except PackageNotFoundError as error:
        raise BadSetting(
            f"{error.name} is not installed: install the extra `rivals` (pip install '.[rivals]')"
        ) from error


def inputs_of(texts: Sequence[Encoded], pad_id: int) -> Inputs:
    """Ids and mask of a padded batch."""
    S = max(len(text.ids) for text in texts)
    ids = np.full((len(texts), S), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), S), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)], mask[row, : len(text.ids)] = text.ids, 1
    return dict(zip(INPUTS, (ids, mask), strict=True))


@dataclass(frozen=True)
class Maker:
    """Makes the rivals of one classifier at full depth, quantized over `texts` where a rival needs some."""

    folder: Path
    layers: int
    texts: Sequence[Inputs]

    def rivals(self) -> dict[str, Rival]:
        """Every rival that this processor can run, ready; what is not in the cache is built (minutes)."""
        from shared.model.openvino_engine import capabilities

        place = cache_dir() / "rivals" / self._digest()[:32]
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with scratch(place.parent) as made:
                (folder := made / "built").mkdir()
                self._build(folder)
                folder.replace(place)
        found: dict[str, Rival] = {
            TRANSFORMERS: _on_torch(self._trained, self.layers),
            ONNXRUNTIME: _on_onnxruntime(place / FILES[ONNXRUNTIME]),
        }
        halves = "BF16" in capabilities()
        if halves:
            found[BF16] = _on_openvino(place / FILES[BF16], halves=True)
        return found | {INT8: _on_openvino(place / FILES[INT8], halves=halves)}

    @property
    def _trained(self) -> Trained:
        return read_trained(self.folder)

    def _digest(self) -> str:
        recipe = Recipe(self._trained, self.layers, quantized=False)
        digest = hashlib.sha256(json.dumps([FORMAT, recipe.digest, versions()]).encode())
        for given in self.texts:
            digest.update(given["input_ids"].tobytes())
        return digest.hexdigest()

    def _build(self, folder: Path) -> None:
        import nncf
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from shared.model.runtime import ov as openvino

        plain = folder / "plain.onnx"
        _export(whole_model(self._trained, self.layers, attention="eager"), plain)
        quantize_dynamic(plain, folder / FILES[ONNXRUNTIME], per_channel=True, weight_type=QuantType.QInt8)
        plain.unlink()
        graph = _converted(whole_model(self._trained, self.layers))
        openvino.save_model(graph, folder / FILES[BF16], compress_to_fp16=False)
        smaller = nncf.quantize(
            graph,
            nncf.Dataset(self.texts),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(self.texts),
        )
        openvino.save_model(smaller, folder / FILES[INT8], compress_to_fp16=False)


def whole_model(trained: Trained, layers: int, attention: str | None = None):
    """transformers' own encoder, adapters merged, and the last exit's head: a torch module from inputs to logits."""
    import torch

    from shared.model.torch_engine import load_base, load_encoder

    class WholeModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            merged, _ = load_base(trained.base)
            head = load_encoder(merged, trained, layers).heads[-1]
            self.base, _ = load_base(trained.base)  # the other one's attention is ours now
            self.base.load_state_dict(merged.state_dict())
            self.query, self.classify = head.query, head.classify
            if attention is not None:
                self.base.set_attn_implementation(attention)

        def forward(self, input_ids, attention_mask):
            hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
            scores = (hidden * self.query).sum(-1)  # [B, S]; no product of matrices, which would become int8 too
            scores = scores + (1 - attention_mask.float()) * -1e9
            return self.classify(torch.matmul(scores.softmax(-1).unsqueeze(1), hidden).squeeze(1))

    return WholeModel().eval().requires_grad_(False)


def _sample():
    import torch

    ids = torch.arange(1000, 1064).reshape(2, 32)
    return ids, torch.ones_like(ids)


def _export(module, path: Path) -> None:
    import torch

    axes = {name: {0: "B", 1: "S"} for name in INPUTS} | {"logits": {0: "B"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        torch.onnx.export(
            module,
            _sample(),
            path,
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


def _converted(module):
    from shared.model.runtime import ov as openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        shapes = [openvino.PartialShape([-1, -1])] * len(INPUTS)
        graph = openvino.convert_model(module, example_input=_sample(), input=shapes)
    for given, name in zip(graph.inputs, INPUTS, strict=True):
        given.get_tensor().set_names({name})
    return graph


def _on_torch(trained: Trained, layers: int) -> Rival:
    import torch

    torch.set_num_threads(1)
    module = whole_model(trained, layers)

    def answer(given: Inputs) -> Array:
        with torch.inference_mode():
            return module(*(torch.from_numpy(given[name]) for name in INPUTS)).numpy()

    return answer


def _on_onnxruntime(path: Path) -> Rival:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, given)[0]


def _on_openvino(path: Path, *, halves: bool) -> Rival:
    from shared.model.openvino_engine import core

    config = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if halves else "f32",
    }
    request = core().compile_model(path, "CPU", config).create_infer_request()

    def answer(given: Inputs) -> Array:
        request.infer(given, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return answer

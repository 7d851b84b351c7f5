"""What a user would run instead: the same classifier with its last exit alone, exported to other runtimes.

    transformers fp32    its own model with its fastest attention: SDPA for BERT, eager for MPNet (it has no other)
    onnxruntime int8     torch.onnx.export with dynamic axes, then quantize_dynamic per channel
    openvino bf16        the whole model in one graph, where the processor has bfloat16
    openvino int8        the same graph after nncf.quantize for transformers

Where the processor has no VNNI, both in int8 have weights of 7 bits: sums of two products of 8 bits saturate there, and
answers are wrong. Adapters are merged. Kept in CACHE/rivals/DIGEST, which names weights, texts and versions. A rival
gets ids and a mask that are made already; our encoder embeds its tokens while the clock runs.
Left out: GPUs, token types (so pairs of texts), ONNX Runtime's transformer fusions (no faster than the plain export on
our models), torch.compile.
"""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lab.whole.runtimes import BF16, FILES, INPUTS, INT8, ONNXRUNTIME, Inputs, Rival, load, runnable
from shared.errors import BadSetting
from shared.model.base import Array
from shared.model.built import Recipe
from shared.model.classifier import Trained, read_trained
from shared.model.weights import cache_dir, scratch

FORMAT = 1
CALIBRATION = 100  # texts that NNCF sees
PACKAGES = ("onnx", "onnxruntime", "nncf", "openvino", "torch", "transformers")
TRANSFORMERS = "transformers fp32"


def has_vnni() -> bool:
    """Whether the processor multiplies 8-bit numbers exactly: on Linux as it says of itself; elsewhere on ARM alone."""
    flags = Path("/proc/cpuinfo")
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return flags.is_file() and "vnni" in flags.read_text()


def versions() -> dict[str, str]:
    """The libraries that take part.

    Raises:
        BadSetting: rivals that are not installed.
    """
    try:
        return {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as error:
        raise BadSetting(f"{error.name} is not installed: install tierwise[rivals,torch]") from error


@dataclass(frozen=True)
class Maker:
    """Makes the rivals of one classifier at full depth, quantized over `texts` where a rival needs some."""

    folder: Path
    layers: int
    texts: Sequence[Inputs]

    def rivals(self) -> dict[str, Rival]:
        """Every rival that this processor can run, ready, with one thread each."""
        place = self.built()
        on_torch = _on_torch(self._trained, self.layers)
        return {TRANSFORMERS: on_torch} | {name: load(name, place, threads=1) for name in runnable()}

    def built(self) -> Path:
        """The folder with their files; what is not in the cache is built (minutes).

        Raises:
            BadSetting: rivals that are not installed.
        """
        place = cache_dir() / "rivals" / self._digest()[:32]
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with scratch(place.parent) as made, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tracing, and of the exporters' own old calls
                (folder := made / "built").mkdir()
                self._build(folder)
                folder.replace(place)
        return place

    @property
    def _trained(self) -> Trained:
        return read_trained(self.folder)

    def _digest(self) -> str:
        recipe = Recipe(self._trained, self.layers, quantized=False)
        digest = hashlib.sha256(json.dumps([FORMAT, recipe.digest, versions(), has_vnni()]).encode())
        for given in self.texts:
            digest.update(given["input_ids"].tobytes())
        return digest.hexdigest()

    def _build(self, folder: Path) -> None:
        from shared.model.runtime import ov as openvino  # first: NNCF must find no telemetry either

        import nncf  # isort: skip
        from onnxruntime.quantization import QuantType, quantize_dynamic  # isort: skip

        plain = folder / "plain.onnx"
        _export(whole_model(self._trained, self.layers, attention="eager"), plain)
        quantize_dynamic(
            plain,
            folder / FILES[ONNXRUNTIME],
            per_channel=True,
            reduce_range=not has_vnni(),
            weight_type=QuantType.QInt8,
        )
        plain.unlink()
        graph = _converted(whole_model(self._trained, self.layers))
        openvino.save_model(graph, folder / FILES[BF16], compress_to_fp16=False)
        smaller = nncf.quantize(
            graph,
            nncf.Dataset(self.texts),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(self.texts),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=None if has_vnni() else nncf.OverflowFix.ENABLE
            ),
        )
        openvino.save_model(smaller, folder / FILES[INT8], compress_to_fp16=False)


def whole_model(trained: Trained, layers: int, attention: str | None = None) -> Any:
    """transformers' own encoder, adapters merged, and the last exit's head: a torch module from inputs to logits."""
    import torch

    from shared.model.torch_engine import load_base, load_encoder

    class WholeModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            merged, _ = load_base(trained.base)
            weights = merged.state_dict()  # the adapters are merged in place
            head = load_encoder(merged, trained, layers).heads[-1]
            base, _ = load_base(trained.base)  # the other one's attention is ours now
            base.load_state_dict(weights)
            base.encoder.layer = base.encoder.layer[:layers]
            self.base: Any = base
            self.query: Any = head.query
            self.classify: Any = head.classify
            if attention is not None:
                self.base.set_attn_implementation(attention)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
            scores = (hidden * self.query).sum(-1)  # [B, S]; no product of matrices, which would become int8 too
            scores = scores + (1 - attention_mask.float()) * -1e9
            return self.classify(torch.matmul(scores.softmax(-1).unsqueeze(1), hidden).squeeze(1))

    return WholeModel().eval().requires_grad_(False)


def _sample() -> tuple[Any, Any]:
    import torch

    ids = torch.arange(64).reshape(2, 32)
    return ids, torch.ones_like(ids)


def _export(module: Any, path: Path) -> None:
    import torch

    axes = {name: {0: "B", 1: "S"} for name in INPUTS} | {"logits": {0: "B"}}
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


def _converted(module: Any) -> Any:
    from shared.model.runtime import ov as openvino

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

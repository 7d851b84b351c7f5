"""What computes in the lab's commands: the engine and the precision that the environment names, as for the tiers.

    TIERWISE_ENGINE      auto, openvino, torch      auto: openvino
    TIERWISE_PRECISION   auto, int8, bf16, fp32     auto: the best that the processor and the classifier have

Everything runs on the CPU: recordings are made once, and are compared with those of other machines.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from shared.errors import BadSetting
from shared.model.classifier import Classifier, choice, load_classifier, read_trained
from shared.model.encoder import EngineName, PrecisionName

if TYPE_CHECKING:
    from shared.model.encoder import Precision


@dataclass(frozen=True)
class Asked:
    """What the environment asks for."""

    engine: EngineName
    precision: PrecisionName

    @property
    def needs_table(self) -> bool:
        """Whether a classifier with a quantization table would run in int8, and one without does not."""
        from shared.model.openvino_engine import capabilities

        if self.engine == "torch":
            return False
        return self.precision == "int8" or (self.precision == "auto" and "INT8" in capabilities())


@dataclass(frozen=True)
class Computes:
    """What computes one classifier."""

    engine: EngineName
    precision: Precision

    def __str__(self) -> str:
        """As `Classifier.runs_on`."""
        return f"{self.engine} {self.precision}"

    @property
    def version(self) -> str:
        """What moves the last bits besides: the engine's version, and what the processor has."""
        if self.engine == "openvino":
            from shared.model.openvino_engine import capabilities

            return f"{version('openvino')} {' '.join(sorted(capabilities()))}"
        import torch

        return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"

    def load(self, folder: Path, *, layers: int, max_tokens: int, threads: int) -> Classifier:
        """The classifier, ready to run in this thread."""
        loaded = load_classifier(
            folder,
            layers=layers,
            max_tokens=max_tokens,
            engine=self.engine,
            precision=self.precision.value,
            device="cpu",
            threads=threads,
        )
        loaded.engine.enter()
        return loaded


def asked() -> Asked:
    """What the environment asks for.

    Raises:
        BadSetting: an engine or a precision that does not exist.
    """
    engine, precision = _read("TIERWISE_ENGINE", EngineName), _read("TIERWISE_PRECISION", PrecisionName)
    return Asked(cast("EngineName", engine), cast("PrecisionName", precision))


def computes(folder: Path) -> Computes:
    """What computes the classifier in `folder`.

    Raises:
        BadSetting: what the environment asks for is not to be had here.
        WrongWeights: no classifier is there.
    """
    wanted = asked()
    return Computes(*choice(read_trained(folder), wanted.engine, wanted.precision, "cpu"))


def check_torch(command: str) -> None:
    """Refuse a command that needs torch where there is none.

    Raises:
        BadSetting: torch is not installed.
    """
    if find_spec("torch") is None:
        raise BadSetting(f"`tierwise {command}` needs torch: install tierwise[torch]")


def let_threads_sleep() -> None:
    """Have torch's threads sleep while they wait for each other; before torch is imported.

    By default they spin. On a machine that others use too, training then takes several times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _read(variable: str, choices: object) -> str:
    value, known = os.environ.get(variable, "auto"), get_args(choices)
    if value not in known:
        raise BadSetting(f"{variable}={value}: expected {', '.join(known)}")
    return value

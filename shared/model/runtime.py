"""OpenVINO without its telemetry. Everything here imports the runtime from this module.

Where the package `openvino-telemetry` is installed, and the runtime's own requirements install it, `import openvino`
alone starts a process that reports the import to its makers. Without the package it takes a stub.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it fails from now on

import openvino as ov  # noqa: E402
from openvino import opset13 as op  # noqa: E402

__all__ = ["op", "ov"]

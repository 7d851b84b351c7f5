"""What a user would run instead of tiers: the same classifier as one whole model, on another runtime."""

from __future__ import annotations

from enum import StrEnum


class Runtime(StrEnum):
    """Runs whole models; the values are its package's name."""

    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"

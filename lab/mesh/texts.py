"""Real texts and what the network's exits say of them: recorded once, for nodes that sleep and for the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lab.data.examples import Example
from lab.mesh.outcome import Exits
from lab.replay.recorder import Kernel, Recorders, runs_on, source_of
from shared.errors import BadSetting
from shared.mesh.runs import ends_of, key_of
from shared.model.base import read_config
from shared.model.bundle import Bundle
from shared.model.calibration import calibrated
from shared.model.classifier import read_trained
from shared.model.state import Form, Segment, packed_bytes


def record(
    bundle: Bundle, examples: Sequence[Example], segments: int | None, recorders: Recorders, out: Path | None = None
) -> tuple[list[Example], Exits]:
    """The texts that can be read, and the exits of the bundle's deepest network; `out`: a file for `Slept`, too.

    Raises:
        BadSetting: no text can be read.
    """
    tier = bundle.order[-1]
    source = source_of(bundle, tier)
    recorder = recorders.of(source, len(bundle.labels))
    numbers = [recorders.corpus.number(example.text, example.pair) for example in examples]
    records = recorder.records(numbers, Kernel.PLAIN)
    recorders.save()
    kept = [at for at, record in enumerate(records) if record.tokens]
    if not kept:
        raise BadSetting("no text of these data can be read")
    layers = bundle.tiers[tier].layers
    temperatures = np.array(bundle.card.temperatures.get(tier, [1.0] * layers), dtype=np.float32)
    logits = np.stack([records[at].logits[:layers] for at in kept], axis=1)  # [L, N, C]
    exits = calibrated(logits, temperatures).transpose(1, 0, 2)  # [N, L, C]
    tokens = np.array([records[at].tokens for at in kept])
    texts = [examples[at] for at in kept]
    ends = ends_of(bundle, segments)
    hidden = read_config(read_trained(source.folder).base).hidden
    whole = Segment("0" * 64, 0, layers, hidden, len(bundle.labels), int(tokens.max()))
    bytes_of = [packed_bytes(whole, int(count), layers // 2, Form.INT8) for count in tokens]
    if out is not None:
        keys = " ".join(key_of(text.text, text.pair) for text in texts)
        told = {"keys": keys, "runs_on": runs_on(bundle), "hidden": str(hidden)}
        save_file({"exits": np.ascontiguousarray(exits, np.float32), "tokens": tokens.astype(np.int32)}, out, told)
    labels = np.array([text.label for text in texts])
    return texts, Exits(exits[:, [end - 1 for end in ends]], labels, np.array(bytes_of), ends)

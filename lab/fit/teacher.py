"""What a trained classifier says of texts, for another one to learn from (Hinton et al. 2015, arXiv 1503.02531).

It runs on the engine that serves, and what it says is kept with the recordings of `replay`: a killed run goes on, and
three seeds ask it once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from lab.engine import computes
from lab.replay.recorder import Corpus, Kernel, Record, Recorder, Source
from shared.errors import WrongWeights
from shared.model.classifier import read_trained


class Teacher:
    """A trained classifier, all its layers, reading `max_tokens` tokens. `digest` names what its answers depend on.

    Raises:
        WrongWeights: the classifier is not there.
    """

    def __init__(self, folder: Path, max_tokens: int, console: Console, *, threads: int) -> None:
        self.classes = read_trained(folder).classes
        try:
            layers = int(json.loads((folder / "network.json").read_text())["layers"])
        except (ValueError, KeyError, TypeError) as error:
            raise WrongWeights(f"{folder}/network.json: does not tell its layers") from error
        self._corpus = Corpus()
        source = Source(folder, layers, max_tokens, computes(folder))
        self._recorder = Recorder(source, self._corpus, self.classes, console, threads=threads)
        self.digest = self._recorder.digest

    def says(self, texts: Sequence[tuple[str, str | None]]) -> Tensor:
        """Probabilities of its last exit, [texts, C]."""
        logits = [torch.from_numpy(record.logits[-1]) for record in self.records(texts, Kernel.PLAIN)]
        return torch.softmax(torch.stack(logits).float(), -1)

    def records(self, texts: Sequence[tuple[str, str | None]], kernel: Kernel) -> list[Record]:
        """What every exit said of each text."""
        records = self._recorder.records([self._corpus.number(*text) for text in texts], kernel)
        self._recorder.save()
        return records

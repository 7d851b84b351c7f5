"""Train every exit of one classifier jointly: low-rank adapters on each linear map, a head after each layer.

The loss is in `recipe.py`. Upper tiers see pruned text in service, so a share of their training texts is pruned first
(`augment.py`); a teacher reads them whole. Reading is head + tail. A killed run resumes from its last checkpoint to
the same batches in the same order. Left out: full fine-tuning (adapters reached the same accuracy in our trials at a
fraction of the bytes).
"""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lab.console import aside, progress
from lab.data.examples import Example, digest
from lab.data.readable import LeftOut, Reader, readable
from lab.fit.augment import TOKENS, augment, unsure
from lab.fit.checks import base_of, check_out, check_recipe, check_texts, is_trained
from lab.fit.recipe import Recipe, joint_loss
from lab.fit.teacher import Teacher
from lab.stops import deferred
from shared.errors import BadSetting
from shared.model.base import load_tokenizer
from shared.model.built import files_of
from shared.model.classifier import Trained, read_trained
from shared.model.tokens import SpecialTokens
from shared.model.torch_engine import MultiExitEncoder, batch, load_base, load_heads, save_classifier
from shared.model.weights import PINNED, as_path, sha256
from shared.model.words import Encoded

_TARGETS = {
    "bert": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    "mpnet": ("q", "k", "v", "o", "intermediate.dense", "output.dense"),
}
_TARGETS["roberta"] = _TARGETS["bert"]


@dataclass
class _Run:
    """A training run in progress: what a checkpoint must hold."""

    encoder: MultiExitEncoder
    factors: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        state = {
            "factors": {k: v.detach() for k, v in self.factors.items()},
            "heads": self.encoder.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "losses": self.losses[-200:],
            "random": torch.get_rng_state(),  # dropout draws from it
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for key, value in self.factors.items():
                value.copy_(state["factors"][key])
        self.encoder.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses = state["step"], state["losses"]
        if "random" in state:  # not in checkpoints of older runs
            torch.set_rng_state(state["random"])


def train(
    recipe: Recipe,
    examples: list[Example],
    validation: list[Example],
    out: Path,
    *,
    threads: int,
    console: Console,
    checkpoint_every_s: float = 120.0,
) -> list[float]:
    """Train on `examples`, write adapters, heads and `network.json` to `out`; the losses of the last 200 steps.

    Checkpoints lie in `out/../.train-*` until it is written. Ctrl-C waits for the end of a step, which is saved.

    Raises:
        BadSetting: the recipe does not fit its base or the texts, `out` cannot be written, or the loss is lost.
    """
    check_out(out)
    check_recipe(recipe)
    examples, validation, left_out = _readable(recipe, examples, validation)
    left_out.tell(aside())
    examples = unsure(recipe, examples, console, threads=threads)
    check_texts(recipe, examples, validation)
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    teacher = Teacher(Path(recipe.teacher), recipe.max_tokens, console, threads=threads) if recipe.teacher else None
    run, tokens = _start(recipe)  # first: it refuses a start that cannot be read
    by, begun = teacher.digest if teacher else "", _digest_of(recipe.start)
    pruner = _digest_of(recipe.prune_with) if recipe.prunes and is_trained(recipe.prune_with) else ""
    made_of = hashlib.sha256(f"{recipe} {by} {begun} {pruner} {digest(examples)}".encode()).hexdigest()[:12]
    scratch = out.parent / f".train-{out.name}-{made_of}"  # another recipe or data set starts afresh
    scratch.mkdir(parents=True, exist_ok=True)
    texts = augment(recipe, examples, scratch, console, threads=threads)
    encoded = [tokens.encode(text, pair, recipe.max_tokens) for text, pair in texts]
    labels = [example.label for example in examples]
    taught = teacher.says([(e.text, e.pair) for e in examples]) if teacher else None  # of whole texts
    batches = _batches(recipe, [len(item.ids) for item in encoded])
    schedule = torch.optim.lr_scheduler.LambdaLR(run.optimizer, _triangle(len(batches), recipe.warmup))
    checkpoint = scratch / "checkpoint.pt"
    if checkpoint.exists():
        run.resume(checkpoint)
        schedule.last_epoch = run.step
        console.print(f"resumed at step {run.step} of {len(batches)}")
    started = time.monotonic()

    def take(rows: list[int]) -> float:
        chosen, right = [encoded[i] for i in rows], torch.tensor([labels[i] for i in rows])
        loss = _step(recipe, run, tokens, chosen, right, None if taught is None else taught[rows])
        schedule.step()
        return loss

    _steps(run, batches, take, checkpoint, out, console, every_s=checkpoint_every_s)
    accuracy = exit_accuracy(run.encoder, tokens, validation, recipe.max_tokens)
    meta = {
        **_told_of(recipe.base, out),
        "layers": recipe.layers,
        "classes": recipe.classes,
        "scale": recipe.scale,
        "recipe": asdict(recipe),
        "training": {
            "examples": len(examples),
            "left_out": left_out.report(),
            "data_sha256": digest(examples),
            **({"teacher": by} if by else {}),
            **({"start": begun} if begun else {}),
            **({"prune_with": pruner} if pruner else {}),
            "steps": len(batches),
            "seconds_since_last_resume": round(time.monotonic() - started),
            "threads": threads,
            "validation_accuracy_per_exit": accuracy,
            "validation_n": len(validation),
        },
    }
    save_classifier(out, run.factors, run.encoder, meta)
    console.print(f"{out}: validation accuracy per exit {accuracy} (n={len(validation)}, {recipe.max_tokens} tokens)")
    shutil.rmtree(scratch)
    return run.losses[-200:]


def _steps(
    run: _Run,
    batches: Sequence[list[int]],
    take: Callable[[list[int]], float],
    checkpoint: Path,
    out: Path,
    console: Console,
    *,
    every_s: float,
) -> None:
    """`take` the batches that are left; the run is saved every so many seconds, before it stops, and at the end.

    Raises:
        BadSetting: the loss is lost.
    """
    saved = time.monotonic()
    with progress(console) as bar, deferred() as stop:
        task = bar.add_task(out.name, total=len(batches), completed=run.step)
        while run.step < len(batches):
            loss = take(batches[run.step])
            if not math.isfinite(loss):
                raise BadSetting(f"the loss is {loss} at step {run.step + 1}: choose a smaller --adapter-lr")
            run.step += 1
            run.losses.append(loss)
            recent = run.losses[-50:]
            mean = sum(recent) / len(recent)
            bar.update(task, completed=run.step, description=f"{out.name}, loss {mean:.3f}")
            if time.monotonic() - saved > every_s:
                run.save(checkpoint)
                saved = time.monotonic()
            if number := stop():
                run.save(checkpoint)
                aside().print(
                    f"{out}: stopped and saved after step {run.step} of {len(batches)}; "
                    "the same command goes on from there"
                )
                signal.raise_signal(number)
    run.save(checkpoint)


def _told_of(base: str, out: Path) -> dict[str, Any]:
    """A base as `network.json` names it: an own one by its bytes, and one beside `out` from there."""
    if base in PINNED:
        return {"base": base}
    path = as_path(base)
    if path is not None:
        whole, beside = path.resolve(), out.parent.resolve()
        base = f"../{whole.relative_to(beside)}" if whole.is_relative_to(beside) else str(whole)
    return {"base": base, "base_files": files_of(str(path.resolve()) if path else base)}


def _readable(
    recipe: Recipe, examples: list[Example], validation: list[Example]
) -> tuple[list[Example], list[Example], LeftOut]:
    bases = [(recipe.base, recipe.max_tokens), *([(base_of(recipe.prune_with), TOKENS)] if recipe.prunes else [])]
    readers = [Reader(SpecialTokens(load_tokenizer(base)), most) for base, most in bases]
    (own, unread), (held, unheld) = readable(examples, readers), readable(validation, readers)
    return own, held, LeftOut([*unread.texts, *unheld.texts])


def _start(recipe: Recipe) -> tuple[_Run, SpecialTokens]:
    """The base with fresh adapters and heads, or with those of the classifier to go on from."""
    from peft import LoraConfig, inject_adapter_in_model

    base, tokenizer = load_base(recipe.base)
    base.requires_grad_(False)
    base.encoder.layer = base.encoder.layer[: recipe.layers]
    for name, module in base.named_modules():
        if name.endswith((".self.dropout", ".attn.dropout")):
            module.p = 0.0  # of attention: with it no kernel of torch's fuses the attention on a CPU: twice the time
    targets = "|".join(name.replace(".", r"\.") for name in _TARGETS[base.config.model_type])
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.rank * recipe.scale,
        target_modules=rf"encoder\.layer\.\d+\..*\b({targets})",
        lora_dropout=0.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own, under peft
        inject_adapter_in_model(config, base)
    encoder = MultiExitEncoder(base, layers=recipe.layers, classes=recipe.classes)
    factors = {}
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            factors[name.replace(".lora_A.default.weight", ".A").replace(".lora_B.default.weight", ".B")] = parameter
    expected = 2 * recipe.layers * 6
    assert len(factors) == expected, f"{len(factors)} adapter factors, expected {expected}"
    if recipe.start:
        _go_on_from(read_trained(Path(recipe.start)), recipe, factors, encoder)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(factors.values()), "lr": recipe.adapter_lr},
            {"params": list(encoder.heads.parameters()), "lr": recipe.head_lr},
        ],
        weight_decay=0.01,
    )
    return _Run(encoder.train(), factors, optimizer), SpecialTokens(tokenizer)


def _digest_of(folder: str) -> str:
    """The sha256 of a trained classifier; empty where none is named."""
    return sha256(Path(folder) / "adapters.safetensors") if folder else ""


def _go_on_from(trained: Trained, recipe: Recipe, factors: dict[str, Tensor], encoder: MultiExitEncoder) -> None:
    tensors = trained.factors
    if trained.base != recipe.base and files_of(trained.base) != files_of(recipe.base):
        raise BadSetting(f"--start {trained.folder}: was trained on {trained.base}, not on {recipe.base}")
    if trained.scale != recipe.scale:
        raise BadSetting(f"--start {trained.folder}: its adapters have scale {trained.scale:g}, not {recipe.scale:g}")
    if {key: value.shape for key, value in tensors.items()} != {key: tuple(own.shape) for key, own in factors.items()}:
        raise BadSetting(f"--start {trained.folder}: its adapters are of another base, rank or number of layers")
    with torch.no_grad():
        for key, own in factors.items():
            own.copy_(torch.from_numpy(tensors[key]))
    load_heads(encoder, trained)


def _step(
    recipe: Recipe, run: _Run, tokens: SpecialTokens, texts: list[Encoded], labels: Tensor, taught: Tensor | None
) -> float:
    ids, segments, padding = batch(texts, tokens.pad_id, run.encoder.device)
    with torch.autocast(run.encoder.device.type, dtype=torch.bfloat16, enabled=recipe.bf16):
        logits = run.encoder(ids, segments, padding)  # [E, B, C]
    loss = joint_loss(logits, labels, recipe, taught)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    run.optimizer.step()
    return loss.item()


def exit_accuracy(
    encoder: MultiExitEncoder, tokens: SpecialTokens, examples: list[Example], max_tokens: int
) -> list[float]:
    """Accuracy of each exit, in batches of 32 sorted by length."""
    encoder.eval()
    texts = [(tokens.encode(e.text, e.pair, max_tokens), e.label) for e in examples]
    texts.sort(key=lambda item: len(item[0].ids))
    right = torch.zeros(len(encoder.layers))
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            chunk = texts[start : start + 32]
            logits = encoder(*batch([item for item, _ in chunk], tokens.pad_id, encoder.device))
            right += (logits.argmax(-1).cpu() == torch.tensor([label for _, label in chunk])).float().sum(1)
    return [round(float(value) / len(texts), 4) for value in right]


def _batches(recipe: Recipe, lengths: list[int]) -> list[list[int]]:
    """Row indices per step: shuffled, then sorted by length inside windows of 50 batches so that little is padding."""
    shuffle = random.Random(recipe.seed)
    rows: list[int] = []
    while len(rows) < recipe.epochs * len(lengths):
        epoch = list(range(len(lengths)))
        shuffle.shuffle(epoch)
        rows += epoch
    rows = rows[: round(recipe.epochs * len(lengths))]
    batches: list[list[int]] = []
    for start in range(0, len(rows), 50 * recipe.batch):
        window = sorted(rows[start : start + 50 * recipe.batch], key=lambda row: lengths[row])
        some = [window[i : i + recipe.batch] for i in range(0, len(window), recipe.batch)]
        shuffle.shuffle(some)
        batches += some
    return batches


def _triangle(steps: int, warmup: float) -> Any:
    """Learning-rate factor: up over the warm-up, then down to zero, both linear."""
    rise = max(1, round(steps * warmup))
    return lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))

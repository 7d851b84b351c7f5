"""Training: the loss by hand, and a tiny run that learns, resumes and can be loaded."""

import io
import json
import math
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lab.data.examples import Example
from lab.fit import train as module
from lab.fit.augment import augment
from lab.fit.recipe import Recipe, joint_loss
from lab.fit.train import train
from shared.errors import TierwiseError
from shared.model.classifier import load_classifier

PLAIN = Recipe(base="unused", layers=2, classes=2)
FILLERS = ("the", "it", "of")
EXAMPLES = [  # 18 texts of one length; the label hangs on one word
    Example(f"a {x} is {word} and {y}", None, label)
    for label, word in ((0, "not"), (1, "film"))
    for x in FILLERS
    for y in FILLERS
]
LONG = " ".join(["some scenes are great, others are terrible, most are simply forgettable"] * 4)  # 44 words


def ce(margin):
    """Cross-entropy of the right label at this logit margin."""
    return math.log(1 + math.exp(-margin))


def logits_of(*margins):
    """One text of label 0 per column, exits as rows: [E, B, 2]."""
    return torch.stack([torch.stack([torch.tensor(row), torch.zeros(len(row))], -1) for row in margins])


def test_the_loss_weighs_each_exit_by_its_layer():
    loss = joint_loss(logits_of([1.0], [2.0]), torch.tensor([0]), PLAIN)
    assert loss.item() == pytest.approx((1 * ce(1) + 2 * ce(2)) / 3, rel=1e-5)


def test_an_exit_that_ends_a_tier_counts_more():
    recipe = replace(PLAIN, tier_ends=(2,), tier_end_weight=3.0)
    loss = joint_loss(logits_of([1.0], [2.0], [0.5]), torch.tensor([0]), recipe)
    assert loss.item() == pytest.approx((1 * ce(1) + 6 * ce(2) + 3 * ce(0.5)) / 10, rel=1e-5)


def test_the_loss_is_the_mean_over_the_batch():
    loss = joint_loss(logits_of([1.0, 3.0]), torch.tensor([0, 1]), PLAIN)
    assert loss.item() == pytest.approx((ce(1) + ce(-3)) / 2, rel=1e-5)


def test_distilling_adds_the_divergence_from_the_deepest_exit_which_learns_nothing_from_it():
    logits = logits_of([0.0], [math.log(3)]).requires_grad_()  # (1/2, 1/2) and (3/4, 1/4)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    labels = torch.tensor([0])
    plain, distilled = joint_loss(logits, labels, PLAIN), joint_loss(logits, labels, replace(PLAIN, distill=0.5))
    assert (distilled - plain).item() == pytest.approx(0.5 * divergence / 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(distilled - plain, logits)
    assert gradient[1].abs().max() < 1e-7
    assert gradient[0].abs().max() > 0.01


def test_a_teacher_adds_the_divergence_of_every_exit_from_what_it_says():
    logits, labels = logits_of([0.0], [math.log(3)]), torch.tensor([0])  # (1/2, 1/2) and (3/4, 1/4)
    taught = torch.tensor([[0.75, 0.25]])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    recipe = replace(PLAIN, distill=2.0)
    added = joint_loss(logits, labels, recipe, taught) - joint_loss(logits, labels, PLAIN)
    assert added.item() == pytest.approx(2.0 * divergence / 3, rel=1e-5)  # the deepest exit says it already


def test_a_gatekeeper_is_to_be_sure_only_where_it_is_right():
    logits, labels = logits_of([math.log(3), math.log(3)]), torch.tensor([0, 1])  # (3/4, 1/4): right, wrong
    from_uniform = 0.75 * math.log(0.75) + 0.25 * math.log(0.25) + math.log(2)
    loss = joint_loss(logits, labels, replace(PLAIN, gatekeeper=0.3))
    assert loss.item() == pytest.approx((0.3 * ce(math.log(3)) + 0.7 * from_uniform) / 2, rel=1e-5)


@pytest.fixture(params=["bert", "roberta", "mpnet"])
def recipe(request, base_on_disk):
    base, rates = str(base_on_disk(request.param, 3)), {"adapter_lr": 1e-2, "head_lr": 3e-2}
    return Recipe(base=base, layers=2, classes=2, max_tokens=32, rank=4, epochs=4, batch=9, bf16=False, **rates)


def run(recipe, out, **options):
    """Train quietly; the losses of the run, step by step."""
    losses = train(recipe, EXAMPLES, EXAMPLES[6:12], out, threads=1, console=Console(file=io.StringIO()), **options)
    assert not list(out.parent.glob(f".train-{out.name}-*"))
    return losses


def test_a_short_run_lowers_the_loss_and_leaves_a_classifier_that_has_learned(recipe, tmp_path):
    losses = run(replace(recipe, epochs=24), tmp_path / "net")
    assert len(losses) == 24 * 18 // 9
    assert sum(losses[-12:]) < sum(losses[:12]) / 2
    told = json.loads((tmp_path / "net" / "network.json").read_text())
    assert (told["layers"], told["classes"], told["scale"], told["training"]["steps"]) == (2, 2, 2.0, 48)
    assert told["recipe"]["seed"] == 0
    classifier = load_classifier(tmp_path / "net", layers=2, max_tokens=32, engine="torch")  # merged, no peft
    traces = classifier.run([classifier.encode(example.text) for example in EXAMPLES[6:12]], None, every_exit=True)
    found = np.stack([trace.logits.argmax(-1) for trace in traces], 1)  # [E, B]
    right = (found == np.array([example.label for example in EXAMPLES[6:12]])).mean(1)
    assert right.tolist() == told["training"]["validation_accuracy_per_exit"] == [1.0, 1.0]


class Killed(Exception):
    """The machine went away."""


def killed_after(monkeypatch, steps):
    step, done = module._step, []

    def dying(*args):
        if len(done) == steps:
            raise Killed
        done.append(None)
        return step(*args)

    monkeypatch.setattr(module, "_step", dying)


def test_a_killed_run_resumes_to_the_same_result(recipe, tmp_path, monkeypatch):
    whole = run(recipe, tmp_path / "whole")
    killed_after(monkeypatch, 5)
    with pytest.raises(Killed):
        run(recipe, tmp_path / "cut", checkpoint_every_s=0.0)
    assert not (tmp_path / "cut").exists()
    monkeypatch.undo()
    assert run(recipe, tmp_path / "cut") == pytest.approx(whole, abs=1e-6)
    expected, found = (load_file(tmp_path / name / "adapters.safetensors") for name in ("whole", "cut"))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_finishes_its_step_saves_and_resumes_to_the_same_result(
    recipe, tmp_path, monkeypatch, capsys, number
):
    whole = run(recipe, tmp_path / "whole")
    step, done = module._step, []

    def stopping(*args):
        done.append(None)
        if len(done) == 3:
            signal.raise_signal(number)
        return step(*args)

    monkeypatch.setattr(module, "_step", stopping)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command line does
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(recipe, tmp_path / "cut")
        assert len(done) == 3
        assert "stopped and saved after step 3 of" in capsys.readouterr().err
        assert run(recipe, tmp_path / "cut") == pytest.approx(whole, abs=1e-6)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(done) == len(whole)


def test_the_same_recipe_trains_the_same_classifier_and_another_seed_another(recipe, tmp_path):
    assert run(recipe, tmp_path / "a") == run(recipe, tmp_path / "b")
    assert run(replace(recipe, seed=1), tmp_path / "c") != run(recipe, tmp_path / "a")


def test_a_pupil_without_labels_of_its_own_learns_what_its_teacher_says(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(tmp_path / "cache"))
    run(replace(recipe, epochs=24), tmp_path / "teacher")
    pupil = replace(recipe, epochs=24, distill=1e4, teacher=str(tmp_path / "teacher"))
    wrong = [replace(example, label=1 - example.label) for example in EXAMPLES]
    monkeypatch.setattr(module, "_readable", lambda recipe, some, held: (wrong, held, module.LeftOut([])))
    run(pupil, tmp_path / "pupil")
    told = json.loads((tmp_path / "pupil" / "network.json").read_text())
    assert told["training"]["validation_accuracy_per_exit"] == [1.0, 1.0]
    assert len(told["training"]["teacher"]) == 64


def test_training_goes_on_from_a_trained_classifier(recipe, tmp_path):
    first = run(replace(recipe, epochs=24), tmp_path / "first")
    (again,) = run(replace(recipe, epochs=0.5, start=str(tmp_path / "first")), tmp_path / "again")
    assert again == pytest.approx(first[-1], abs=0.05)
    assert again < first[0] / 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"teacher": "net"}, "--teacher without --distill"),
        ({"teacher": "net", "distill": 1.0, "classes": 3}, "--teacher .*net: has 2 labels, not 3"),
        ({"start": "net", "classes": 3}, "--start .*net: has 2 labels, not 3"),
        ({"prune_with": "net", "pruned_share": 0.5, "classes": 3}, "--prune-with .*net: has 2 labels, not 3"),
        ({"start": "net", "rank": 2}, "--start .*net: its adapters are of another base, rank or number of layers"),
        ({"start": "nowhere"}, "cannot read the trained classifier"),
    ],
)
def test_a_teacher_or_a_start_that_does_not_fit_is_refused(recipe, tmp_path, change, complaint):
    run(replace(recipe, epochs=0.5), tmp_path / "net")
    change = change | {key: str(tmp_path / change[key]) for key in ("teacher", "start", "prune_with") if key in change}
    with pytest.raises(TierwiseError, match=complaint):
        run(replace(recipe, **change), tmp_path / "other")


def test_a_start_on_another_base_is_refused_and_leaves_nothing(recipe, base_on_disk, tmp_path):
    run(replace(recipe, epochs=0.5), tmp_path / "net")
    family = json.loads((Path(recipe.base) / "config.json").read_text())["model_type"]
    other = replace(recipe, base=str(base_on_disk(family, 3, seed=1)), start=str(tmp_path / "net"))
    with pytest.raises(TierwiseError, match=r"was trained on .*, not on"):
        run(other, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_run_that_began_from_another_start_is_not_gone_on_with(recipe, tmp_path, monkeypatch):
    for name, seed in (("first", 0), ("second", 1)):
        run(replace(recipe, epochs=0.5, seed=seed), tmp_path / name)
    start = tmp_path / "start"
    shutil.copytree(tmp_path / "first", start)
    killed_after(monkeypatch, 3)
    with pytest.raises(Killed):
        run(replace(recipe, start=str(start)), tmp_path / "cut", checkpoint_every_s=0.0)
    monkeypatch.undo()
    shutil.rmtree(start)
    shutil.copytree(tmp_path / "second", start)
    train(
        replace(recipe, start=str(start)),
        EXAMPLES,
        EXAMPLES[6:12],
        tmp_path / "cut",
        threads=1,
        console=Console(quiet=True),
    )
    assert json.loads((tmp_path / "cut" / "network.json").read_text())["training"]["steps"] == 8
    assert len(list(tmp_path.glob(".train-cut-*"))) == 1  # the other run's


def test_a_share_of_the_texts_is_pruned_once_and_read_again_on_resuming(base_on_disk, tmp_path):
    base = str(base_on_disk("bert", 3))
    recipe = Recipe(base=base, layers=1, classes=2, pruned_share=0.5, prune_with=base, prune_coefficients=(1.0,))
    examples, console = [Example(LONG, LONG if i < 2 else None, 0) for i in range(4)], Console(file=io.StringIO())
    texts = augment(recipe, examples, tmp_path, console)
    changed = [i for i, (text, _) in enumerate(texts) if text != LONG]
    assert len(changed) == 2
    for i in changed:
        words = iter(LONG.split())
        assert all(word in words for word in texts[i][0].split())
        assert len(texts[i][0].split()) < 44
        assert (texts[i][1] is None) == (examples[i].pair is None)
    assert augment(replace(recipe, prune_with="not needed again"), examples, tmp_path, console) == texts


def test_every_epoch_reads_every_text_once_in_batches_of_like_length():
    recipe = replace(PLAIN, epochs=2, batch=4)
    lengths = [7 * i % 23 for i in range(40)]
    batches = module._batches(recipe, lengths)
    assert sorted(row for batch in batches for row in batch) == sorted([*range(40), *range(40)])
    assert max(map(len, batches)) == 4
    spread = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
    assert sum(spread) / len(spread) < 3  # 22 at most; about 14 in random batches
    assert batches == module._batches(recipe, lengths)
    assert sum(map(len, module._batches(replace(recipe, epochs=0.5), lengths))) == 20


def test_the_learning_rate_rises_then_falls_to_zero():
    factor = module._triangle(steps=10, warmup=0.2)
    assert [factor(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert [factor(step) for step in (6, 9, 10)] == [0.5, 0.125, 0.0]
    assert module._triangle(steps=1, warmup=0.06)(0) == 1


def test_a_teacher_reads_whole_what_its_pupil_reads_pruned(base_on_disk, tmp_path, monkeypatch):
    read = []

    class Told:
        digest = "told"

        def __init__(self, *_, **__):
            pass

        def says(self, texts):
            read.extend(texts)
            return torch.full((len(texts), 2), 0.5)

    monkeypatch.setattr(module, "Teacher", Told)
    monkeypatch.setattr(module, "check_recipe", lambda _: None)
    base = str(base_on_disk("bert", 3))
    recipe = Recipe(base=base, layers=1, classes=2, rank=2, pruned_share=1.0, prune_with=base, teacher="T", distill=1.0)
    examples = [Example(LONG, None, label) for label in (0, 1)]
    seen, encode = [], module.SpecialTokens.encode

    def encoding(self, text, pair, most):
        seen.append(text)
        return encode(self, text, pair, most)

    monkeypatch.setattr(module.SpecialTokens, "encode", encoding)
    train(replace(recipe, bf16=False), examples, examples, tmp_path / "net", threads=1, console=Console(quiet=True))
    assert read == [(LONG, None)] * 2
    assert min(len(text.split()) for text in seen) < len(LONG.split())  # what the pupil read

"""`tierwise tables` and `plan` on tiny random bundles: replay's numbers, a killed run goes on, a plan is a policy."""

import json
import shutil
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from lab.cli.main import app
from lab.data.examples import digest, load, without
from lab.papers import hu, make
from lab.papers.figures import FIGURES
from lab.replay.compare import Texts, compare
from lab.replay.recorder import Recorders
from lab.replay.trial import Conditions
from shared.errors import BadSetting
from shared.model.bundle import load_bundle
from shared.policies import named

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_bundle, sentences):
    """A folder of data and one of bundles, whose cards name the data's held-out rows; a cache of its own."""
    root = tmp_path_factory.mktemp("world")
    rows = [(f"{text} take {take}", take % 2) for take in range(3) for text in sentences]
    train = [(f"{text} again", row % 2) for row, text in enumerate(sentences)]
    for name, split in (("imdb", "test"), ("tiny", "dev")):
        every = [(*row, split) for row in rows] + [(*row, "train") for row in train] + [(*rows[0], "train")]
        columns = dict(zip(("text", "label", "split"), map(list, zip(*every, strict=True)), strict=True))
        (root / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), root / "data" / f"{name}.parquet")
    for name in ("collaborative", "split-tiny"):
        shutil.copytree(tiny_bundle, root / "models" / name)
        for classifier in ("minilm-6-whole", "minilm-6-pruned"):
            shutil.copytree(tiny_bundle / "bert-3", folder := root / "models" / name / classifier)
            meta = json.loads((folder / "network.json").read_text())
            meta |= {"training": {"examples": 9}, "recipe": {"pruned_share": 0.25}}
            (folder / "network.json").write_text(json.dumps(meta))
        card = json.loads((root / "models" / name / "card.json").read_text())
        held = load(str(root / "data" / "tiny.parquet"), "train")[-10:]
        card["report"]["validation"] = {"n": 10, "data_sha256": digest(held)}
        card["report"]["pools"] = {"chosen": {"mu": 0.02}}
        (root / "models" / name / "card.json").write_text(json.dumps(card))
    return root


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(world / "cache"))
    monkeypatch.setattr("shared.model.bundle.MODELS", world / "models")
    monkeypatch.setattr(make, "MODELS", world / "models")
    for pause in ("REST", "SECONDS"):  # times are not what is tested
        monkeypatch.setattr(f"lab.replay.profile.{pause}", 0.0)
    return world


def run(here, out, names=()):
    return make.run(here / "data", list(names), out, 24, conditions())


def conditions():
    return Conditions(Recorders(QUIET))


def test_every_table_and_its_numbers_are_those_of_replay(here, tmp_path):
    assert run(here, tmp_path) > 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["tables"]) == set(make.NAMES)
    assert set(report["tables"]["dimee-1"]) == {"tiny"}
    assert set(report["verdicts"]) == {"collaborative", "split-tiny"}
    assert all(said.startswith("collaborative takes ") for said in report["verdicts"].values())
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    (part,) = report["tables"]["hu-1"].values()
    ours = [row["spec"] for row in part["points"]["rows"] if row["rule"] == "ours"]
    assert len(ours) == 3
    assert ours == [named(str(tmp_path / f"point-{spec['offload_threshold']:g}.policy.json")) for spec in ours]

    data = str(here / "data" / "tiny.parquet")
    unseen = without(load(data, "dev"), load(data, "train"))[:24]
    made = report["tables"]["dimee-1"]["tiny"]
    assert made["made"]["n"] == 24
    assert made["made"]["data_sha256"] == digest(unseen)
    texts = Texts(data, "dev", unseen, [load_bundle("split-tiny")])
    replayed, _ = compare([texts], ["dimee", "random", "oracle", "adaee"], conditions())
    replayed = replayed["bundles"]["split-tiny"]["policies"]
    for row, policy in (("dimee-f", "dimee"), ("random", "random"), ("oracle", "oracle"), ("adaee", "adaee")):
        assert {key: made["rows"][row][key] for key in replayed[policy]} == json.loads(json.dumps(replayed[policy]))
    whole = made["rows"]["whole model"]
    assert whole["unit_cost"]["against_whole_model_on_device"] == 0
    assert whole["paired"]["accuracy"] == [0, 0, 0]
    costs = {name: row["unit_cost"]["mean"] for name, row in made["against_dimee"].items()}
    assert costs["confidence cascade, same cost"] <= made["rows"]["dimee-f"]["unit_cost"]["mean"] + 1e-9

    varied = report["tables"]["dimee-costs"]["tiny"]["cost_variation"]["rows"]
    (alpha,) = {own["alpha"] for points in varied.values() for own in points if own["factor"] == 1}
    for points in varied.values():
        alike = [own for own in points if own["alpha"] == alpha]
        assert all(own["less_unchanged"][0] == 0 for own in alike)
        slopes = [(b["units"] - a["units"]) / (b["factor"] - a["factor"]) for a, b in pairwise(alike)]
        assert slopes == pytest.approx(slopes[:1] * len(slopes))  # the same decisions: the price alone moves the cost
    assert any(own["alpha"] != alpha for points in varied.values() for own in points)

    for row in report["tables"]["hu-pruned"]["imdb"]["rows"]:  # the same classifier twice: no difference
        value, low, high = row["paired"]["accuracy"]
        assert value == 0
        assert low == -high < 0  # what the texts leave open, not certainty
    rows = report["tables"]["hu-1"]["imdb"]["table"]["rows"]
    assert [(r["spec"]["offload_threshold"], r["spec"]["theta"]) for r in rows][:4] == [
        (0.9, 0.0),
        (0.9, 1e-5),
        (0.9, 1e-4),
        (0.9, 1e-2),
    ]
    assert len(rows) == 12


def test_a_killed_run_keeps_what_it_made_and_runs_no_text_twice(here, tmp_path, monkeypatch):
    run(here, tmp_path / "first")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hu, "parts", killed)
    with pytest.raises(KeyboardInterrupt):
        run(here, tmp_path / "second")
    kept = json.loads((tmp_path / "second" / "report.json").read_text())["tables"]
    assert set(kept) == {"hu-1"}
    monkeypatch.undo()
    monkeypatch.setenv("TIERWISE_CACHE_DIR", str(here / "cache"))
    monkeypatch.setattr("shared.model.bundle.MODELS", here / "models")
    monkeypatch.setattr(make, "MODELS", here / "models")
    assert run(here, tmp_path / "second") == 0
    first, second = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("first", "second"))
    assert first["tables"] == second["tables"]


def test_one_table_is_made_anew_and_the_others_stay(here, tmp_path):
    run(here, tmp_path, ["hu-1"])
    run(here, tmp_path, ["dimee-pools"])
    assert set(json.loads((tmp_path / "report.json").read_text())["tables"]) == {"hu-1", "dimee-pools"}


def test_what_cannot_be_made_is_told(here, tmp_path):
    with pytest.raises(BadSetting, match="no table 'nonsense'"):
        run(here, tmp_path, ["nonsense"])
    with pytest.raises(BadSetting, match=r"none of tiny\.parquet"):
        make.run(tmp_path, [], tmp_path, 24, conditions())


def plan(here, out, *targets):
    arguments = ["plan", "--data", str(here / "data" / "tiny.parquet"), "--bundle", "split-tiny", "--n", "40"]
    return CliRunner().invoke(app, [*arguments, "--links", "5g-nsa,metro", "--out", str(out), *targets])


def test_a_plan_is_written_as_a_policy_that_tiers_load(here, tmp_path):
    done = plan(here, tmp_path / "plan", "--accuracy", "0")  # of ten texts no bound says more
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "plan.json").read_text())
    file = tmp_path / "plan.policy.json"
    assert f"TIERWISE_POLICY={file}" in done.output
    assert named(str(file)) == said["policy"]
    assert (tmp_path / "plan.png").stat().st_size > 1000
    assert said["unseen"]["holds_of_100_resamplings"] == 100
    again = said["unseen"]["replanned"]
    assert again["feasible"] == again["hold"] == 100
    chosen = [point for point in said["walked"] if point["chosen"]]
    assert len(chosen) == 1
    on_all = [4 * point["searched"]["mean_ms"] + 6 * point["confirmed"]["mean_ms"] for point in said["walked"]]
    assert said["walked"][on_all.index(min(on_all))] == chosen[0]
    best = [(point["searched"]["mean_ms"], point["searched"]["accuracy"]) for point in said["front"]]
    assert not any(a != b and a[0] <= b[0] and a[1] >= b[1] for a in best for b in best)
    assert [point["spec"] for point in said["walked"] if point["on_front"]] == [p["spec"] for p in said["front"]]


def test_a_plan_that_nothing_meets_names_the_nearest_and_exits_with_1(here, tmp_path):
    done = plan(here, tmp_path / "plan", "--accuracy", "0.99", "--p95-ms", "1")
    assert done.exit_code == 1, done.output
    assert "No setting meets accuracy 0.99, p95_ms 1.0" in " ".join(done.output.split())
    assert "Nearest: " in done.output
    assert not (tmp_path / "plan.policy.json").exists()


def test_a_table_whose_data_are_missing_is_refused(here, tmp_path):
    (tmp_path / "data").mkdir()
    data = here / "data" / "tiny.parquet"
    (tmp_path / "data" / data.name).write_bytes(data.read_bytes())
    with pytest.raises(BadSetting, match=r"needs imdb\.parquet"):
        run(tmp_path, tmp_path / "out", ["hu-1"])

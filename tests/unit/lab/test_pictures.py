"""Pictures: labels cover no other words, whatever is drawn; the committed ones are what the code draws."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from lab.docs import pictures
from lab.docs.measured import RESULTS, read
from lab.live import bench_report
from lab.papers import figures
from lab.picture import BLUE, GREEN, GREY, LABEL, ORANGE, Dot, intervals, picture, scatter
from lab.replay import plan_report
from lab.replay import report as replay_report

COMMITTED = sorted(path.name for path in RESULTS.glob("*.png"))


@pytest.fixture(scope="module")
def boxes():
    """The words of every picture that is saved: by file name, each text with its box; warnings are errors here."""
    saved, save = {}, Figure.savefig

    def keep(figure, path, **how):
        save(figure, path, **how)
        out = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in beyond_the_view(axis)}
        every = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in out]
        saved[path.name] = (
            figure.bbox.frozen(),
            [(text.get_text(), text.get_gid(), Text.get_window_extent(text)) for text in every],
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        yield saved


@pytest.fixture(scope="module")
def drawn(boxes, tmp_path_factory):
    """A folder of the pictures of docs/results, drawn anew."""
    out = tmp_path_factory.mktemp("pictures")
    pictures.draw(out)
    return out


def beyond_the_view(axis):
    """Labels of ticks that matplotlib keeps and does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]


def overlaps(a, b):
    """Pixels by which two boxes cover each other, the narrower way; negative where they are apart."""
    return min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))


def unreadable(saved):
    """What a reader of a picture cannot read: labels that meet other words, and words beyond the edge."""
    whole, words = saved
    labels = [word for word in words if word[1] == LABEL]
    rest = [word for word in words if word[1] != LABEL]
    met = [(a[0], b[0]) for a, b in itertools.combinations(labels, 2) if overlaps(a[2], b[2]) > 0]
    met += [(a[0], b[0]) for a, b in itertools.product(labels, rest) if overlaps(a[2], b[2]) > 0]
    beyond = [
        text
        for text, _, box in words
        if min(box.x0 - whole.x0, box.y0 - whole.y0, whole.x1 - box.x1, whole.y1 - box.y1) < -1
    ]
    return met + beyond


def test_every_committed_picture_has_a_claim_and_a_page_that_shows_it(drawn):
    shown = {
        file.rpartition("/")[2]
        for page in RESULTS.parent.rglob("*.md")
        for file in re.findall(r"!\[[^]]+\]\(([^)]+\.png)\)", page.read_text())
    }
    assert shown - {"page.png"} == set(COMMITTED) == {path.name for path in drawn.iterdir()}
    assert len(pictures.CLAIMS) == len(COMMITTED)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_picture_can_be_read_and_is_what_the_code_draws(drawn, boxes, name):
    assert unreadable(boxes[name]) == []
    before, now = imread(RESULTS / name), imread(drawn / name)
    assert before.shape == now.shape
    assert before.shape[1] <= 1400
    assert before.shape[0] <= 900
    assert (np.abs(before - now).max(-1) > 0.1).mean() < 0.001  # the measure of a font's rim, not of a moved word


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [1, 0.05, 0])
def test_labels_of_a_crowd_do_not_overprint(boxes, tmp_path, seed, spread):
    noise = np.random.default_rng(seed)
    places = [(100 + x, 90 + y) for x, y in noise.uniform(-spread, spread, (12, 2))]
    dots = [Dot(f"policy-{at}:$x^{at}$", x, y, (y - 1, y + 1)) for at, (x, y) in enumerate(places)]
    dots[3] = replace(
        dots[3], name="collaborative:steepness=10,patience=2,pruning_coefficient=0,weighting=fitted,theta=0"
    )
    with picture(tmp_path / "crowd.png", "a $title$", "of what") as (axes,):
        scatter(axes, dots)
    assert unreadable(boxes["crowd.png"]) == []
    assert sum(gid == LABEL for _, gid, _ in boxes["crowd.png"][1]) == 12


def test_what_a_run_of_yours_draws_says_its_texts_machine_and_links(boxes, tmp_path):
    bench = read(RESULTS / "bench.json")
    bench_report.draw({**bench, "policies": {"cloud-only": bench["policies"]["cloud-only"]}}, tmp_path / "mine.png")
    plan_report.draw(read(RESULTS / "plan.json"), tmp_path / "plan.png")
    replay = read(RESULTS / "replay.json")
    for bundle in replay["bundles"]:
        replay_report.draw(replay, bundle, tmp_path / f"{bundle}.png")
        assert unreadable(boxes[f"{bundle}.png"]) == []
    for name, of in (("mine", "1,000"), ("plan", "2,500 texts"), ("split-cola", "cola.parquet, dev split, n = 200")):
        said = " ".join(" ".join(text.split()) for text, *_ in boxes[f"{name}.png"][1])
        assert all(part in said for part in (of, ", 2 cores", "5g-nsa"))
        assert not any(claim in said for claim in pictures.CLAIMS.values())


def test_a_picture_of_nothing_is_empty(tmp_path):
    with picture(tmp_path / "nothing.png", "title", "note") as (axes,):
        scatter(axes, [])
    with picture(tmp_path / "rows.png", "title", "note") as (axes,):
        intervals(axes, {"a": [], "b": [1.0]}, name="one")
    figures.draw({}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nothing.png", "rows.png"]


def test_the_line_joins_what_nothing_beats_and_leaves_out_what_only_replay_runs(tmp_path):
    dots = [
        Dot("a", 1, 5, (4, 6)),
        Dot("b", 2, 4, (3, 5)),
        Dot("c", 3, 9, (8, 10)),
        Dot("oracle", 1, 10, (9, 11), hollow=True),
    ]
    with picture(tmp_path / "line.png", "title", "note") as (axes,):
        scatter(axes, dots)
        assert np.column_stack(axes.lines[0].get_data()).tolist() == [[1, 5], [3, 9]]


def test_a_dot_has_the_colour_of_its_kind_a_bold_name_on_the_line_and_its_chance_control_as_a_cross(tmp_path):
    dots = [
        Dot("best", 1, 5, (4, 6), colour="#ff0000", chance=(2, 4.5)),
        Dot("beaten", 2, 4, (3, 5)),
        Dot("alone", 3, 6, (5, 7), chance=(3, 6)),
    ]
    with picture(tmp_path / "kinds.png", "title", "note") as (axes,):
        scatter(axes, dots)
        crosses = [np.ravel(line.get_data()).tolist() for line in axes.lines if line.get_marker() == "x"]
        assert crosses == [[2, 4.5]]  # one that is its own control has none
        assert {line.get_color() for line in axes.lines if line.get_marker() == "o"} == {"#ff0000", GREY, BLUE}
        weights = {text.get_text(): text.get_fontweight() for text in axes.texts}
        assert weights == {"best": "bold", "beaten": "normal", "alone": "bold"}


def test_a_bench_tells_kinds_of_rows_by_colour(tmp_path, monkeypatch):
    bench, drawn = read(RESULTS / "bench.json"), {}
    monkeypatch.setattr(bench_report, "scatter", lambda _, dots: drawn.update({dot.name: dot.colour for dot in dots}))
    bench_report.draw(bench, tmp_path / "bench.png")
    kinds = {"collaborative": BLUE, "collaborative:pruning_coefficient=1": BLUE, "tabi": GREY, "cloud-only": GREEN}
    assert {name: drawn[name] for name in kinds} == kinds
    assert {colour for name, colour in drawn.items() if name.startswith("whole ")} == {ORANGE}


def test_a_replay_draws_chance_controls_where_its_score_is_accuracy(boxes, tmp_path):
    replay = read(RESULTS / "replay.json")
    for f in replay["bundles"]["collaborative"]["policies"].values():
        f["chance"] = {"modelled_ms": 100.0, "accuracy": 0.9}
    replay_report.draw(replay, "collaborative", tmp_path / "crosses.png")
    assert unreadable(boxes["crosses.png"]) == []
    assert any("crosses: as many texts per tier" in " ".join(text.split()) for text, *_ in boxes["crosses.png"][1])

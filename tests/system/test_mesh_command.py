"""`tierwise mesh`: node processes on this machine, and the same in simulated time."""

import json

import pytest


@pytest.fixture
def data(tmp_path, sentences):
    """The sentences as labelled texts."""
    path = tmp_path / "texts.csv"
    lines = [f'"{sentence}",{at % 2}' for at, sentence in enumerate(sentences)]
    path.write_text("\n".join(["text,label", *lines]))
    return path


def report_of(tmp_path):
    return json.loads((tmp_path / "mesh.json").read_text())


def test_a_node_that_is_killed_in_mid_run_loses_no_text(command, tiny_bundle, data, tmp_path):
    asked = ["--topology", "mesh3", "--rate", "30", "--seconds", "4", "--kill", "n2@2", "--segments", "4"]
    also = ["--service-ms", "10", "--threshold", "1.0", "--link", "ideal"]
    done, said = command("mesh", *asked, *also, "--bundle", tiny_bundle, "--data", data, "--split", "all")
    assert done.exit_code == 0, said
    (cell,) = report_of(tmp_path)["cells"]
    assert "slept 10 ms" in cell["kind"]
    assert "slept 10 ms" in done.stdout
    assert (cell["lost"], cell["unfinished"], cell["refused"]) == (0, 0, 0)
    assert cell["answered"] == cell["admitted"] == cell["offered"] > 60
    before, after = cell["over_time"][1][3], cell["over_time"][-1][3]
    assert ("n2" in before, "n2" in after) == (True, False)
    assert cell["facts"]["segments"]["n3"] > 0  # the work was shared
    assert (tmp_path / "mesh.png").is_file()


def test_nodes_that_compute_their_own_segments_alone_say_so(command, tiny_bundle, data, tmp_path):
    asked = ["--topology", "pair", "--rate", "10", "--seconds", "2", "--segments", "2", "--link", "ideal"]
    asked += ["--hold", "n1=1-1", "--hold", "n2=2-2", "--threshold", "1.0"]
    done, said = command("mesh", *asked, "--bundle", tiny_bundle, "--data", data, "--split", "all")
    assert done.exit_code == 0, said
    (cell,) = report_of(tmp_path)["cells"]
    assert cell["kind"] == "live, computed on shared processors"
    assert cell["answered"] == cell["offered"] > 5
    assert cell["held"] == {"n1": "1-1", "n2": "2-2"}
    assert cell["facts"]["segments"] == {"n1": cell["answered"], "n2": cell["answered"]}


def test_a_sweep_in_simulated_time(command, tiny_bundle, data, tmp_path):
    asked = ["--topology", "local", "--topology", "torus25", "--rate", "5", "--rate", "20", "--adapt", "threshold"]
    also = ["--simulated", "--seconds", "6", "--segments", "4"]
    done, said = command("mesh", *asked, *also, "--bundle", tiny_bundle, "--data", data, "--split", "all")
    assert done.exit_code == 0, said
    cells = report_of(tmp_path)["cells"]
    assert [(cell["topology"], cell["rate"]) for cell in cells] == [
        (name, rate) for name in ("local", "torus25") for rate in (5.0, 20.0)
    ]
    assert {cell["kind"] for cell in cells} == {"simulated"}
    assert all(cell["facts"]["events_per_s"] > 0 for cell in cells)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--kill", "n2"], "NODE@SECONDS"),
        (["--kill", "n2@90"], "NODE@SECONDS"),
        (["--kill", "n9@2"], "choose from n2, n3"),
        (["--topology", "mesh7"], "topology"),
        (["--topology", "torus25"], "--simulated"),
        (["--link", "wire"], "link profile"),
        (["--segments", "9", "--simulated"], "9 segments of 4 layers"),
        (["--rate", "nan"], "--rate"),
        (["--hold", "n2"], "NODE=FIRST-LAST"),
        (["--hold", "n2=1-2", "--hold", "n2=3-4"], "once for each node"),
        (["--hold", "n2=3-9"], "expected FIRST-LAST"),
        (["--hold", "n9=1-2"], "no such node"),
        (["--hold", "n1=2-2"], "does not hold segment 1"),
        (["--topology", "pair", "--segments", "4", "--hold", "n1=1-1", "--hold", "n2=3-4"], "segment 2: held neither"),
        (["--check", "--simulated"], "--check"),
        (["--compose", "--simulated"], "--compose"),
        (["--cut", "n1-n2@1-2"], "--compose"),
        (["--compose", "--cut", "n1-n2@2-1"], "LINK@FROM-TO"),
        (["--compose", "--topology", "ring3", "--cut", "n1-n9@1-2"], "choose from n1-n2, n1-n3, n2-n3"),
        (["--adapt", "rate", "--rate", "5"], "the source finds its rate itself"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(command, tiny_bundle, data, words, why):
    done, said = command("mesh", *words, "--bundle", tiny_bundle, "--data", data, "--split", "all")
    assert done.exit_code != 0
    assert why in said

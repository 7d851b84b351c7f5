"""`tierwise link`: how shapers are found and asked, and what it prints. No Docker: containers are stand-ins."""

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lab.cli import link_cli
from lab.data.examples import Example, digest
from lab.live import cells, links
from lab.live import simulated_links as compare
from lab.live.bench import Plan
from services.shaper.verify import Check, Report
from shared.errors import BadSetting


class Container:
    """Answers as `docker exec` does: status, (output, errors)."""

    def __init__(self, service, project="tierwise", answer=b'{"ok": true}', status=0, err=None):
        self.labels = {links.SERVICE: service, links.PROJECT: project}
        self.attrs = {"NetworkSettings": {"Networks": {f"{project}_end-edge": {"IPAddress": "172.18.0.2"}}}}
        self.said, self.asked = (status, (answer, err)), []

    def exec_run(self, command, *, demux):
        assert demux
        self.asked.append(json.loads(command[-1]))
        return self.said


@pytest.fixture
def engine(monkeypatch):
    """A builder: the Docker SDK with these containers running."""

    class DockerException(Exception):
        pass

    def build(*containers, broken=False):
        def from_env():
            if broken:
                raise DockerException("no socket")
            return SimpleNamespace(containers=SimpleNamespace(list=lambda filters: list(containers)))

        errors = SimpleNamespace(DockerException=DockerException)
        monkeypatch.setitem(sys.modules, "docker", SimpleNamespace(from_env=from_env, errors=errors))
        monkeypatch.setitem(sys.modules, "docker.errors", errors)

    return build


def test_shapers_are_found_by_their_service(engine):
    engine(Container("end-shaper"), Container("end"), Container("edge-shaper"))
    assert list(links.running_shapers()) == ["end", "edge"]
    assert links.address("edge", "end-edge") == "172.18.0.2"


@pytest.mark.parametrize(
    ("containers", "complaint"),
    [
        ([], "docker compose up"),
        ([Container("end")], "docker compose up"),
        ([Container("end-shaper", "a"), Container("end-shaper", "b")], "a, b.*--project"),
    ],
)
def test_a_stack_that_is_not_there_is_one_clear_line(engine, containers, complaint):
    engine(*containers)
    with pytest.raises(BadSetting, match=complaint):
        links.running_links().show()


def test_no_engine_is_one_clear_line(engine):
    engine(broken=True)
    with pytest.raises(BadSetting, match="no Docker Engine answers"):
        links.running_links().verify()


def test_both_ends_are_asked(engine):
    end, edge, cloud = (Container(f"{tier}-shaper") for tier in ("end", "edge", "cloud"))
    engine(end, edge, cloud)
    links.running_links().set_profile("end-edge", "lte")
    asked = [{"do": "set", "profile": "lte", "link": "end-edge"}]
    assert (end.asked, edge.asked, cloud.asked) == (asked, asked, [])


def test_a_trace_is_read_here_and_travels_packed(engine, tmp_path):
    from shared.links.trace import unpack

    up, down = tmp_path / "up.csv", tmp_path / "down.csv"
    up.write_text("0,1e6\n1,2e6\n")
    down.write_text("0,3e6\n1,4e6\n")
    end, edge = Container("end-shaper"), Container("edge-shaper")
    engine(end, edge)
    links.running_links().play_trace("end-edge", up, down)
    rates = [[step.rate_bps for step in unpack("t", c.asked[0]["packed"]).steps] for c in (end, edge)]
    assert rates == [[1e6, 2e6], [3e6, 4e6]]
    up.write_text("0,fast\n")
    with pytest.raises(BadSetting, match=r"trace up\.csv, line 1"):
        links.running_links().play_trace("end-edge", up)


@pytest.mark.parametrize(
    ("container", "complaint"),
    [
        (Container("end-shaper", answer=b'{"error": "not shaped yet"}', status=2), "end-shaper: not shaped yet"),
        (Container("end-shaper", answer=None, status=126, err=b"OCI runtime"), "end-shaper: status 126: OCI runtime"),
    ],
)
def test_a_shaper_that_refuses_is_quoted(container, complaint):
    with pytest.raises(BadSetting, match=complaint):
        links.ContainerShaper("end", container).ask({"do": "ready"})


def test_an_unknown_profile_is_refused_before_anything_is_asked(engine):
    engine(end := Container("end-shaper"), edge := Container("edge-shaper"))
    with pytest.raises(BadSetting, match="choose from"):
        links.running_links().set_profile("end-edge", "6g")
    assert end.asked == edge.asked == []


def report(held):
    return Report("end-edge", "lte", "profile", (Check("rtt", "37 ms", "37 ms", held),), {})


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_verify_fails_loudly(monkeypatch, held, as_json):
    verify = SimpleNamespace(verify=lambda chosen: [report(held)])
    monkeypatch.setattr(link_cli, "running_links", lambda project: verify)
    result = CliRunner().invoke(link_cli.app, ["verify", "end-edge"] + ["--json"] * as_json)
    assert result.exit_code == (0 if held else 1)
    if as_json:
        assert json.loads(result.stdout)[0]["ok"] is held
    else:
        assert ("NO" in result.stdout) is not held


def test_list_says_every_profile_with_its_source_also_without_a_stack(engine):
    engine()
    result = CliRunner().invoke(link_cli.app, ["list"])
    assert result.exit_code == 0
    for word in ("5g-nsa", "67 Mbit/s", "SIGCOMM", "unlimited", "No running links", "docker compose up"):
        assert word in result.stdout
    assert json.loads(CliRunner().invoke(link_cli.app, ["list", "--json"]).stdout)["links"] == {}


def test_show_says_what_is_in_force(engine):
    end = {"profile": "lte", "mode": "waiting", "trace": None, "kernel": None, "counters": None, "direction": "up"}
    engine(Container("end-shaper", answer=json.dumps({"links": {"end-edge": end}}).encode()))
    result = CliRunner().invoke(link_cli.app, ["show"])
    assert result.exit_code == 0, result.output
    assert "lte (waiting)" in result.stdout
    assert "not shaped" in result.stdout


@pytest.mark.parametrize("command", ["set", "trace", "cut", "heal"])
def test_a_change_says_what_is_in_force_at_each_end(engine, tmp_path, command):
    file = tmp_path / "t.csv"
    file.write_text("0,1e6\n1,2e6\n")
    state = {"profile": "lte", "mode": "profile", "trace": None, "rate": 14e6, "rtt": 0.037, "loss": 0.0}
    engine(*(Container(f"{tier}-shaper", answer=json.dumps(state).encode()) for tier in ("end", "edge")))
    more = {"set": ["lte"], "trace": [str(file)]}.get(command, [])
    result = CliRunner().invoke(link_cli.app, [command, "end-edge", *more])
    assert result.exit_code == 0, result.output
    assert "end-edge up: lte (profile): 14 Mbit/s, RTT 37 ms, loss 0 %" in result.stdout


def test_a_stack_without_shape_is_neither_verified_nor_compared(engine, tmp_path):
    engine(*(Container(f"{tier}-shaper", answer=b'{"links": {}}') for tier in ("end", "edge")))
    with pytest.raises(BadSetting, match="no link is shaped"):
        links.running_links().verify()
    with pytest.raises(BadSetting, match="end-edge is not shaped by netem"):
        compare.run("http://127.0.0.1:1", 5, tmp_path / "out.json", None, Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_bad_cell_is_refused_before_the_first_is_measured(engine, tmp_path):
    engine(end := Container("end-shaper"), edge := Container("edge-shaper"))
    plan = Plan([Example("a film", None, 0)], ["end-only"])
    for bad, complaint in (("bad", "expected ACCESS/BACKBONE"), ("lte/6g", "'6g'")):
        with pytest.raises(BadSetting, match=complaint):
            cells.run(plan, ["lte/regional", bad], "http://127.0.0.1:1", tmp_path / "out", Console(quiet=True))
    assert end.asked == edge.asked == []


def test_a_measured_cell_stands_for_its_own_plan_alone(engine, tmp_path, monkeypatch):
    engine()
    plan = Plan([Example("a film", None, 0)], ["end-only"])
    report = {"data_sha256": digest(plan.examples), "policies": {"end-only": {}}, "loop": plan.loop, "seed": 0}
    (tmp_path / "out-lte-regional.json").write_text(json.dumps(report))
    monkeypatch.setattr(cells, "table", lambda report: "the table")
    said = Console(record=True, quiet=False, file=io.StringIO())
    cells.run(plan, ["lte/regional"], "http://127.0.0.1:1", tmp_path / "out", said)
    assert "already measured" in said.export_text()
    for other in (replace(plan, policies=["edge-only"]), replace(plan, rate=5.0), replace(plan, seed=1)):
        with pytest.raises(BadSetting, match="no link shaper is running"):  # it sets out to measure
            cells.run(other, ["lte/regional"], "http://127.0.0.1:1", tmp_path / "out", said)

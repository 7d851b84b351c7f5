"""The `tierwise` command over tiny random models: what it says, and, as a real process with real signals, how it ends.

TEST_SIGNALS=all   every signal, not one of each kind
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from lab.live.stack import free_ports
from lab.outputs import sole_writer
from services.end import ROLE
from shared.contracts import Why
from shared.web import service
from shared.web.settings import Settings
from tests.commands import CLEAN, tierwise

TIERWISE = [sys.executable, "-m", "lab.cli.main"]
ROOT = Path(__file__).resolve().parents[2]
ALL = os.environ.get("TEST_SIGNALS") == "all"


def wait_until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def answers(url):
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_text_is_never_read_as_markup_and_rows_keep_their_index(three):
    text = "a [bold]fine[/bold] film [/nonsense]"
    assert "[bold]fine[/bold]" in tierwise("classify", text, "--url", three).stdout
    done = tierwise("classify", "--json", "--url", three, stdin="\n".join([text] * 18))
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == list(range(18))


def test_classify_says_why_and_whom_the_ensemble_overruled(three, sentences):
    texts = "\n".join(sentences)
    policy = "collaborative:offload_threshold=1,weighting=accuracy"
    results = [
        json.loads(line)
        for line in tierwise("classify", "--url", three, "--policy", policy, "--json", stdin=texts).stdout.splitlines()
    ]
    lines = tierwise("classify", "--url", three, "--policy", policy, stdin=texts).stdout.splitlines()
    said = " ".join(line.rpartition("│")[2].strip() for line in lines)  # the last column, which may be folded
    overruled = [result for result in results if result["ensemble"]["overruled"]]
    assert len(results) == said.count(Why.UNSURE_DEEPEST) == 12
    assert len(overruled) == said.count("The ensemble overruled cloud, which said") > 0


def test_a_parameter_may_differ_by_tier(three):
    policy = 'collaborative:offload_threshold={"end":1.0,"edge":0.0},theta=0'
    done = tierwise("classify", "a fine film", "--url", three, "--policy", policy, "--json")
    hops = json.loads(done.stdout)["hops"]
    assert hops[0]["offload_probability"] == 1.0
    assert hops[1]["offload_probability"] < 1.0


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        ("collaborative:theta=NaN", "theta"),
        ("collaborative:zeal=1", "zeal"),
        ("nonsense", "unknown policy 'nonsense'"),
    ],
)
def test_a_policy_that_makes_no_sense_is_one_line(three, policy, complaint):
    done = tierwise("classify", "a fine film", "--url", three, "--policy", policy)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bench_writes_the_files_that_it_was_told_to(three, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("text,label,split\na fine film,1,test\na waste of time,0,test\n")
    out = tmp_path / "x0.95"
    arguments = ["bench", "--data", str(data), "--n", "2", "--policy", "end-only", "--policy", "cloud-only"]
    done = tierwise(*arguments, "--url", three, "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "x0.95.json").read_text())
    assert (report["n"], list(report["policies"])) == (2, ["end-only", "cloud-only"])
    assert (tmp_path / "x0.95.png").stat().st_size > 1000
    done = tierwise(*arguments, "--url", three, "--link", "lte")
    assert done.returncode == 2
    assert "already keep their links" in done.stderr
    done = tierwise(*arguments, "--url", three, "--trace", "driving", "--rate", "1")
    assert done.returncode == 2
    assert "--trace needs --rate and tiers that are started here" in " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture
def lines(tmp_path, sentences):
    """Forty lines, of which two are blank and one holds no word that a tier knows."""
    path = tmp_path / "lines.txt"
    path.write_text("\n".join([*sentences * 3, "", " ", "\U0001f642\U0001f642", "a fine film"]) + "\n")
    return path


def test_a_line_that_is_refused_costs_no_other_line_and_is_named(three, lines):
    done = tierwise("classify", "--file", str(lines), "--url", three, "--json")
    assert done.returncode == 1
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [*range(36), 37]
    assert f"{lines}, line 39 ('\U0001f642\U0001f642'): " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = tierwise("classify", "--url", three, stdin="\U0001f642\na fine film\n")
    assert done.returncode == 1
    assert "a fine film" in done.stdout
    assert "standard input, line 1 (" in done.stderr


def test_texts_are_arguments_lines_or_rows_of_a_file_of_labelled_texts(three, tmp_path):
    table = tmp_path / "q.csv"
    table.write_text('label,text\nx,"a fine\nfilm"\ny,a waste\n,\n')
    for arguments, stdin in (
        (["a fine film", "a waste"], ""),
        (["-"], "a fine film\n\na waste\n"),
        (["--file", "-"], "a fine film\na waste\n"),
        (["--file", str(table)], ""),
    ):
        done = tierwise("classify", *arguments, "--url", three, "--json", stdin=stdin)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr
    table.write_text("words,label\na,b\n")
    done = tierwise("classify", "--file", str(table), "--url", three)
    assert "q.csv: needs a column text; it has 'words', 'label'" in done.stderr


def test_long_texts_that_are_too_much_for_one_body_are_sent_apart(three, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("a fine film\n" + ("a film " * 100_000 + "\n") * 4 + "a waste\n")  # 2.8 MB; a body has 2 MB at most
    done = tierwise("classify", "--file", str(path), "--url", three, "--json")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 6)


def test_a_policy_that_makes_no_sense_is_one_line_for_a_file_too(three, lines):
    done = tierwise("classify", "--file", str(lines), "--url", three, "--policy", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown policy 'nonsense'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_names_and_texts_reach_the_terminal_as_they_are(three):
    done = tierwise("classify", "[red]a fine :fire: film[/x]\x1b[2J \x9b1m", "--url", three)
    assert "[red]a fine :fire: film[/x]\\x1b[2J \\x9b1m" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.fixture
def data(tmp_path):
    """Six labelled texts; one is blank, one holds no word that a tier knows."""
    rows = ["\U0001f642,1", "a fine film,1", " ,0", "a waste of time,0", "the plot is thin,0", "an honest story,1"]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["text,label,split", *(f"{row},test" for row in rows)]) + "\n")
    return path


def test_bench_leaves_out_what_the_tiers_refuse_and_keeps_every_text_s_record(three, data, tmp_path):
    out = tmp_path / "exp [" / "x] r $y$"
    arguments = ["bench", "--data", str(data), "--policy", "end-only", "--policy", "cloud-only", "--url", three]
    done = tierwise(*arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "left out, as no tier reads them: 2 texts" in done.stderr
    assert f"{data}, line 2 (" in done.stderr
    assert f"{out}.json" in done.stdout.replace("\n", "")
    report = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert (report["n"], report["left_out"]["n"], report["split"]) == (6, 2, "test")
    rows = pq.read_table(f"{out}.parquet").to_pylist()
    assert [(row["row"], row["policy"]) for row in rows] == [
        (row, policy) for row in (1, 3, 4, 5) for policy in ("cloud-only", "end-only")
    ]
    away, here = rows[:2]
    assert (away["tier"], away["label"], away["place"]) == ("cloud", "positive", f"{data}, line 3")
    assert [link["link"] for link in away["links"]] == ["end-cloud"]
    assert away["bytes_up"] == away["links"][0]["up"] > 0
    assert (here["tier"], here["links"], here["bytes_up"], here["degraded"]) == ("end", [], 0, None)
    right = [row["label"] == row["predicted"] for row in rows if row["policy"] == "end-only"]
    assert sum(right) / 4 == report["policies"]["end-only"]["accuracy"]


def test_a_bench_that_was_killed_at_a_refused_text_goes_on_after_it(three, data, tmp_path):
    arguments = ["bench", "--data", str(data), "--policy", "end-only", "--url", three, "--out", str(tmp_path / "b")]
    assert tierwise(*arguments).returncode == 0
    whole = json.loads((tmp_path / "b.json").read_text())
    header = json.dumps(
        {"data": whole["data_sha256"], "policies": ["end-only"], "loop": whole["loop"], "seed": 0}
        | {"card": whole["first_tier"]["card_sha256"]}
        | {"links": [[link["to"], link["backend"], link["profile"]] for link in whole["first_tier"]["links"]]}
    )
    (tmp_path / "b.jsonl").write_text(header + "\n" + json.dumps({"row": 0, "refused": "seen before"}) + '\n{"row": 1')
    done = tierwise(*arguments)
    assert done.returncode == 0, done.stderr
    assert "seen before" in done.stderr
    again = json.loads((tmp_path / "b.json").read_text())
    assert again["policies"]["end-only"]["accuracy"] == whole["policies"]["end-only"]["accuracy"]


def test_a_second_bench_under_one_name_is_refused(three, data, tmp_path):
    arguments = ["bench", "--data", str(data), "--policy", "end-only", "--url", three, "--out", str(tmp_path / "b")]
    with sole_writer(tmp_path / "b"):
        done = tierwise(*arguments)
    assert done.returncode == 2
    assert "another run is writing there: wait for it, or choose another --out" in done.stderr
    assert not (tmp_path / "b.json").exists()
    done = tierwise(*arguments)
    assert done.returncode == 0, done.stderr
    assert "(over earlier ones)" in tierwise(*arguments).stdout


def test_a_bench_of_a_file_without_splits_must_be_asked_for(three, tmp_path):
    (tmp_path / "data.csv").write_text("text,label\na fine film,1\n")
    arguments = ["bench", "--data", str(tmp_path / "data.csv"), "--policy", "end-only", "--url", three]
    done = tierwise(*arguments, "--out", str(tmp_path / "b"))
    assert done.returncode == 2
    assert "no split column: add one, or say --split all to use every row" in done.stderr
    done = tierwise(*arguments, "--out", str(tmp_path / "b"), "--split", "all")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "b.json").read_text())["split"] == "all"


def test_serve_refuses_settings_that_it_would_not_heed(tiny_bundle):
    done = tierwise("serve", "--bundle", str(tiny_bundle), TIERWISE_PORT="9190", TIERWISE_LINKS="none")
    assert done.returncode == 2
    assert "TIERWISE_LINKS, TIERWISE_PORT" in done.stderr


def test_modules_of_the_folder_where_it_runs_are_not_the_tiers(tiny_bundle, tmp_path):
    for name in ("structlog", "torch", "tokenizers", "shared"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the working folder')")
    command = [sys.executable, "-P", "-m", "lab.cli.main", "demo"]  # -P: as the installed command
    done = subprocess.run(
        [*command, "--bundle", str(tiny_bundle), "--port", str(free_ports(3)), "--link", "ideal"],
        env={**CLEAN, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Answered" in done.stdout


@pytest.mark.parametrize("command", ["serve", "demo", "print-config", "services.end"])
def test_an_env_file_here_is_said_not_to_be_read(tiny_bundle, tmp_path, monkeypatch, command):
    (tmp_path / ".env").write_text("TIERWISE_POLICY='nonsense'  # for the containers\nTIERWISE_LOG_LEVEL=hush\n")
    monkeypatch.chdir(tmp_path)
    port = free_ports(3)
    settings = {"TIERWISE_BUNDLE": str(tiny_bundle), "TIERWISE_PORT": str(port)}
    with socket.create_server(("127.0.0.1", port)):  # stopped before it starts: this is about what it says
        if command == "services.end":
            environment = {**CLEAN, "PYTHONPATH": str(ROOT), **settings, "TIERWISE_KEY_FILE": str(tmp_path / ".env")}
            words = [sys.executable, "-m", command]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        elif command == "print-config":
            done = tierwise(command, **settings)
        else:
            done = tierwise(command, "--bundle", str(tiny_bundle), "--port", str(port))
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if ".env is" in line]
    assert "is not read here: TIERWISE_POLICY, TIERWISE_LOG_LEVEL must be exported" in line
    assert "hush" not in done.stdout + done.stderr


@pytest.fixture
def served(tiny_bundle, tmp_path):
    """`tierwise serve` for one test, with policies of `tmp_path`: its process and its tiers'."""
    port = free_ports(3)
    child = subprocess.Popen(
        [*TIERWISE, "serve", "--bundle", str(tiny_bundle), "--port", str(port), "--link", "ideal"],
        env={**CLEAN, "TIERWISE_POLICY_DIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a job in the background ignores it
    )
    tiers = []
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}") or child.poll() is not None, "the tiers did not start")
        tiers = psutil.Process(child.pid).children()
        assert len(tiers) == 3
        yield child, tiers
    finally:
        child.kill()
        child.wait()
        for tier in running(tiers):
            tier.kill()


def running(tiers):
    return [tier for tier in tiers if tier.is_running() and tier.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGTERM, *([signal.SIGINT] if ALL else [])])
def test_whatever_stops_serve_stops_the_tiers(served, number):
    child, tiers = served
    child.send_signal(number)
    child.wait(timeout=40)
    assert not running(tiers)


def listens(tier):
    """The addresses at which a process takes connections: its first may as well be one to a further tier."""
    return [found.laddr for found in tier.net_connections("inet") if found.status == psutil.CONN_LISTEN]


def test_serve_passes_a_hang_up_on_to_its_tiers_and_goes_on(served, tmp_path):
    child, tiers = served
    wait_until(lambda: all(map(listens, tiers)), "a tier does not listen")
    ports = [listens(tier)[0].port for tier in tiers]
    code = "from shared.policies import Policy\nclass Mine(Policy):\n    name = 'mine'\n"
    (tmp_path / "mine.py").write_text(code)
    child.send_signal(signal.SIGHUP)
    for port in ports:
        info = f"http://127.0.0.1:{port}/info"
        wait_until(lambda at=info: "mine" in httpx.get(at, timeout=20).json()["own_policies"], "a tier did not reload")
    assert child.poll() is None
    assert running(tiers) == tiers


@pytest.mark.parametrize("number", [signal.SIGKILL, *([signal.SIGQUIT, signal.SIGABRT] if ALL else [])])
def test_tiers_end_with_serve_whatever_ends_it(served, number):
    child, tiers = served
    wait_until(lambda: all(map(listens, tiers)), "a tier does not listen")
    ports = [listens(tier)[0] for tier in tiers]
    child.send_signal(number)
    child.wait(timeout=60)
    wait_until(lambda: not running(tiers), "a tier outlives `tierwise serve`", seconds=15)
    for port in ports:  # the next start finds them free
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(port)


@pytest.mark.parametrize("after_s", [0.5, 2.0] if ALL else [0.5])
def test_tiers_that_still_start_end_with_serve_too(tiny_bundle, after_s):
    command = [*TIERWISE, "serve", "--bundle", str(tiny_bundle), "--port", str(free_ports(3)), "--link", "ideal"]
    child, tiers = subprocess.Popen(command, env=CLEAN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), []
    try:
        wait_until(lambda: tiers.extend(psutil.Process(child.pid).children()) or len(tiers) > 1, "no tier was started")
        time.sleep(after_s)
        tiers.extend(psutil.Process(child.pid).children())
    finally:
        child.kill()
        child.wait()
    try:
        wait_until(lambda: not running(tiers), "a tier outlives `tierwise serve`", seconds=15)
    finally:
        for tier in running(tiers):
            tier.kill()


def test_a_second_ctrl_c_does_not_wait_for_a_tier_that_hangs(served):
    child, tiers = served
    tiers[1].suspend()
    child.send_signal(signal.SIGINT)
    wait_until(lambda: not running(tiers[:1]), "the first tier did not stop")
    time.sleep(0.5)
    assert running(tiers) == tiers[1:2]
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    child.wait(timeout=10)
    assert not running(tiers)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"TIERWISE_POLICY": "nonsense"}, "unknown policy 'nonsense'"),
        ({"TIERWISE_LINK_PROFILES": "edge=lte,could=lte"}, "TIERWISE_LINK_PROFILES must name a profile for each"),
        ({"TIERWISE_LINK_PROFILES": "edge=lte,cloud=lite"}, "'lite': choose from"),
        ({"TIERWISE_UPSTREAMS": "end=http://127.0.0.1:1"}, "'end' is not deeper than end: edge, cloud"),
        ({"TIERWISE_PORT": "0"}, "TIERWISE_PORT='0'"),
        ({"TIERWISE_LINKS": "netem", "TIERWISE_LINK_STATE_DIR": "/nowhere"}, "start this tier's shaper"),
    ],
)
def test_a_bad_setting_stops_the_tier_with_one_line(tiny_bundle, monkeypatch, environment, complaint):
    said = []
    monkeypatch.setattr(service, "take_over", lambda *_: None)  # this process keeps its own log
    monkeypatch.setattr(os, "environ", {**CLEAN, "TIERWISE_BUNDLE": str(tiny_bundle), **environment})
    try:
        lines = SimpleNamespace(write=said.append)
        assert service._serve(ROLE, Settings, "shared.web.app", lines) == 2
    finally:
        gc.enable()
    (line,) = "".join(said).splitlines()
    assert complaint in line


def test_a_tier_s_process_ends_with_2_at_a_bad_setting():
    command = [sys.executable, "-m", "services.end"]
    done = subprocess.run(command, env={**CLEAN, "TIERWISE_PORT": "0"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("tierwise end: TIERWISE_PORT='0'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["print-config", "foo"], "TIERWISE_TIER='foo': the bundle's tiers are end, edge, cloud"),
        (["classify", "hello", "--url", "http://127.0.0.1:99999"], "is no address"),
        (["classify"], "nothing to classify"),
        (["bench", "--data", "nowhere.csv"], "no such file"),
        (["demo", "--port", "80000"], "65000"),
        (["demo", "--link", "warp"], "'warp': choose from"),
    ],
)
def test_a_wrong_argument_is_told_and_exits_with_2(arguments, complaint):
    done = tierwise(*arguments)
    assert done.returncode == 2
    assert complaint in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_cache_folder_that_cannot_be_made_is_one_line(tiny_bundle, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "data.csv").write_text("text,label,split\na fine film,1,test\n")
    asked = ("replay", "--data", str(tmp_path / "data.csv"), "--bundle", str(tiny_bundle), "--policy", "end-only")
    done = tierwise(*asked, TIERWISE_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert len(done.stderr.splitlines()) == 1

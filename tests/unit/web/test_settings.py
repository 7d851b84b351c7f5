"""Settings: read from `TIERWISE_*`, and one line that says which variable is wrong and what was expected."""

import os
import re
import traceback
from pathlib import Path

import pytest
import yaml

import services.cloud
import services.edge
import services.end
from lab.live.client import key_of
from services.end import ROLE as END
from shared.errors import BadSetting
from shared.links.profile import Backend
from shared.web.settings import ELSEWHERE, Role, Settings, load_settings, unread_env_file


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch):
    for key in [key for key in os.environ if key.startswith("TIERWISE_")]:
        monkeypatch.delenv(key)


def test_three_tiers_on_one_host_need_no_setting_at_all():
    end, edge, cloud = (load_settings(tier.ROLE) for tier in (services.end, services.edge, services.cloud))
    assert [s.port for s in (end, edge, cloud)] == [8080, 8081, 8082]
    assert end.upstreams == END.upstreams
    assert list(end.upstreams) == ["edge", "cloud"]  # nearest first
    assert end.link_profiles == END.links
    assert edge.upstreams == {"cloud": "http://127.0.0.1:8082"}
    assert cloud.upstreams == {}
    assert (end.tier, end.links, end.threads) == ("end", Backend.SIMULATED, 1)


def test_what_the_containers_read_from_the_environment_stops_no_tier_beside_them(monkeypatch):
    root = Path(__file__).resolve().parents[3]
    files = [root / "docker-compose.yml", root / "deploy/up.sh", *(root / "deploy").glob("compose.*.yml")]
    files += (root / "deploy/mesh").glob("*.yml")
    read = {name for file in files for name in re.findall(r"\$\{(TIERWISE_\w+)", file.read_text())}
    assert len(read) > 20
    assert read | {"TIERWISE_CACHE_DIR"} >= ELSEWHERE  # and no name is let through that nothing reads
    for name in read - {f"TIERWISE_{own.upper()}" for own in Settings.model_fields}:
        monkeypatch.setenv(name, "anything")
    assert load_settings(END).port == 8080


def test_every_setting_reaches_a_container():
    compose = yaml.safe_load((Path(__file__).resolve().parents[3] / "docker-compose.yml").read_text())
    fixed = {"link_state_dir", "tier"}  # by the volumes, and by the module that the container runs
    keys = {"key_file", "door_key_file"}  # deploy/compose.keys.yml, with the secrets
    for tier in ("end", "edge", "cloud"):
        assert compose["services"][tier]["command"] == ["python", "-m", f"services.{tier}"]
        given = {name.removeprefix("TIERWISE_").lower() for name in compose["services"][tier]["environment"]}
        assert given == {*Settings.model_fields} - fixed - keys


def test_variables_win_over_defaults(monkeypatch):
    monkeypatch.setenv("TIERWISE_PORT", "9000")
    monkeypatch.setenv("TIERWISE_LINKS", "netem")
    monkeypatch.setenv("TIERWISE_UPSTREAMS", " cloud=http://cloud:8082/a=b , edge=http://edge:8081,")
    monkeypatch.setenv("TIERWISE_UPSTREAM_TIMEOUT_MS", "250.5")
    settings = load_settings(END)
    assert (settings.port, settings.links, settings.upstream_timeout_ms) == (9000, Backend.NETEM, 250.5)
    assert list(settings.upstreams.items()) == [("cloud", "http://cloud:8082/a=b"), ("edge", "http://edge:8081")]


def test_an_empty_number_of_threads_is_none_given(monkeypatch):
    monkeypatch.setenv("TIERWISE_THREADS", "")
    assert load_settings(Role("fog", threads=3)).threads == 3


def test_an_empty_list_cuts_a_tier_off(monkeypatch):
    monkeypatch.setenv("TIERWISE_UPSTREAMS", "")
    assert load_settings(END).upstreams == {}


def test_a_tier_of_another_name_has_no_links_by_default():
    fog = load_settings(Role("fog"))
    assert (fog.tier, fog.port, fog.upstreams) == ("fog", 8080, {})


def test_the_cache_folder_is_not_ours_to_refuse(monkeypatch):
    monkeypatch.setenv("TIERWISE_CACHE_DIR", "/nowhere")
    assert load_settings(END).tier == "end"


def test_an_unknown_variable_stops_the_start(monkeypatch):
    monkeypatch.setenv("TIERWISE_TREADS", "4")
    monkeypatch.setenv("TIERWISE_ZEAL", "1")
    with pytest.raises(BadSetting) as caught:
        load_settings(END)
    hint = "TIERWISE_TREADS (did you mean TIERWISE_THREADS?)"
    assert str(caught.value) == f"unknown setting {hint}, TIERWISE_ZEAL: see `tierwise print-config`"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("TIERWISE_EGDE_CPUS", "TIERWISE_EDGE_CPUS"),
        ("TIERWISE_CLOUD_MEMROY", "TIERWISE_CLOUD_MEMORY"),
        ("TIERWISE_END_EGDE", "TIERWISE_END_EDGE"),
        ("TIERWISE_EDGE_UPSTREAM", "TIERWISE_EDGE_UPSTREAMS"),
    ],
)
def test_a_typing_error_in_a_variable_of_the_containers_stops_the_start_too(monkeypatch, written, meant):
    monkeypatch.setenv(written, "1")
    with pytest.raises(BadSetting, match=rf"{written} \(did you mean {meant}\?\)"):
        load_settings(END)


@pytest.mark.parametrize(
    ("key", "value", "expectation"),
    [
        ("TIERWISE_PORT", "many", "expected a whole number"),
        ("TIERWISE_PROBE_MS", "fast", "expected a number"),
        ("TIERWISE_LINK_CONTROL", "maybe", "expected true or false"),
        ("TIERWISE_PORT", "0", "must be greater than or equal to 1"),
        ("TIERWISE_PORT", "65536", "less than or equal to 65535"),
        ("TIERWISE_THREADS", "0", "greater than or equal to 1"),
        ("TIERWISE_LINKS", "carrier-pigeon", "'netem', 'simulated' or 'none'"),
        ("TIERWISE_DEVICE", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("TIERWISE_CALIBRATION", "off", "'per_exit' or 'per_model'"),
        ("TIERWISE_UPSTREAM_TIMEOUT_MS", "-1", "greater than 0"),
        ("TIERWISE_UPSTREAMS", "edge", "expected TIER=VALUE,TIER=VALUE"),
        ("TIERWISE_UPSTREAMS", "edge=", "expected TIER=VALUE,TIER=VALUE"),
        ("TIERWISE_UPSTREAMS", "edge=http://a,edge=http://b", "named twice"),
        ("TIERWISE_UPSTREAMS", "edge=garbage", "no http(s) URL"),
        ("TIERWISE_UPSTREAMS", "edge=http://127.0.0.1:99999", "invalid port"),
        ("TIERWISE_UPSTREAMS", "edge=ftp://a", "'http' or 'https'"),
        ("TIERWISE_UPSTREAMS", "edge=http://a|", "no http(s) URL"),
        ("TIERWISE_UPSTREAMS", "edge=http://a|http://b|http://a/", "edge: an address is named twice"),
        ("TIERWISE_UPSTREAMS", "edge=http://a|http://b:0", "no http(s) URL"),
        ("TIERWISE_OTLP_ENDPOINT", "collector", "no http(s) URL"),
        ("TIERWISE_BATCH_WAIT_MS", "inf", "less than or equal to 10000"),
        ("TIERWISE_DRAIN_S", "nan", "less than or equal to 3600"),
        ("TIERWISE_HOST", "", "at least 1 character"),
        ("TIERWISE_LINK_PROFILES", "=lte", "expected TIER=VALUE,TIER=VALUE"),
        ("TIERWISE_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_was_expected(monkeypatch, key, value, expectation):
    monkeypatch.setenv(key, value)
    with pytest.raises(BadSetting) as caught:
        load_settings(END)
    assert str(caught.value).startswith(f"{key}={value!r}: ")
    assert expectation in str(caught.value)


def test_settings_do_not_change_once_read():
    with pytest.raises(ValueError, match="frozen"):
        load_settings(END).port = 1


SECRET = "correct-horse-battery"


@pytest.mark.parametrize("setting", ["TIERWISE_UPSTREAMS", "TIERWISE_OTLP_ENDPOINT"])
@pytest.mark.parametrize(
    "url",
    [
        f"http://svc:{SECRET}@127.0.0.1:8181",
        f"https://{SECRET}@edge",
        f"http://:{SECRET}@edge:8081/",
        f"http://svc%3A{SECRET}%40@edge",
        f"http://svc:pass/{SECRET}@edge",
        f"http://svc:pass,{SECRET}@edge",
        f"http://svc:a=b,c={SECRET}@edge",
        f"http:svc:{SECRET}@edge",
        f"http:/svc:{SECRET}@edge",
        f"http://edge:99999@{SECRET}",
        f"http://edge:8081/?key={SECRET}",
        f"http://edge:8081?{SECRET}",
        f"http://edge:8081/#{SECRET}",
        f"ftp://svc:{SECRET}@edge",
    ],
)
def test_a_secret_in_an_address_stops_the_start_and_is_not_shown(monkeypatch, setting, url):
    monkeypatch.setenv(setting, f"edge={url}" if setting == "TIERWISE_UPSTREAMS" else url)
    with pytest.raises(BadSetting) as caught:
        load_settings(END)
    assert setting in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["PORT", "HOST", "POLICY", "LINKS", "BUNDLE", "END_UPSTREAMS", "DEADLINE_MS"])
def test_no_setting_shows_a_password_that_was_put_there(monkeypatch, name):
    monkeypatch.setenv(f"TIERWISE_{name}", f"http://svc:{SECRET}@edge:8081")
    with pytest.raises(BadSetting, match=f"TIERWISE_{name}: .*TIERWISE_KEY_FILE") as caught:
        load_settings(END)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("setting", ["TIERWISE_KEY_FILE", "TIERWISE_DOOR_KEY_FILE"])
@pytest.mark.parametrize("value", [SECRET, f"Bearer {SECRET}", f"/{SECRET}=", SECRET * 100])
def test_a_key_in_the_place_of_its_file_is_not_shown(monkeypatch, setting, value):
    monkeypatch.setenv(setting, value)
    with pytest.raises(BadSetting, match=f"{setting}: the file that it names is missing") as caught:
        load_settings(END)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(BadSetting, match=setting) as caught:
        key_of(setting)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    ["http://edge:0", "http://edge :8081", "http://edge\t", "http:\\\\edge", "http:edge", "http:/edge", "//edge"],
)
def test_an_address_that_clients_read_in_another_way_is_refused(monkeypatch, url):
    monkeypatch.setenv("TIERWISE_UPSTREAMS", f"edge={url}/x")
    with pytest.raises(BadSetting, match=r"^TIERWISE_UPSTREAMS='.*no http\(s\) URL"):
        load_settings(END)


ORDER = ("end", "edge", "cloud")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HOST": "127.0.0.1"},
        {"HOST": "127.3.2.1"},
        {"HOST": "localhost"},
        {"HOST": "::1"},
        {"HOST": "::ffff:127.0.0.1"},
        {"HOST": "0.0.0.0", "ALLOW_OPEN": "true"},
        {"HOST": "0.0.0.0", "KEY_FILE": __file__},
        {"HOST": "0.0.0.0", "DOOR_KEY_FILE": __file__},
        {"HOST": "0.0.0.0", "PUBLISHED": ""},
        {"HOST": "0.0.0.0", "PUBLISHED": "127.0.0.1:9000"},
        {"HOST": "::", "PUBLISHED": "[::1]:9000"},
    ],
)
def test_a_tier_starts_where_only_this_machine_reaches_it_or_a_key_guards_it(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(f"TIERWISE_{name}", value)
    load_settings(END).check(ORDER)


@pytest.mark.parametrize(
    "environment",
    [
        {"HOST": "0.0.0.0"},
        {"HOST": "0"},
        {"HOST": "::"},
        {"HOST": "192.0.2.1"},
        {"HOST": "::ffff:0.0.0.0"},
        {"HOST": "a-name.invalid"},
        {"HOST": "0.0.0.0", "ALLOW_OPEN": "false"},
        {"HOST": "0.0.0.0", "PUBLISHED": "0.0.0.0:8080"},
        {"HOST": "0.0.0.0", "PUBLISHED": "8080"},
        {"HOST": "0.0.0.0", "PUBLISHED": "[::]:8080"},
    ],
)
def test_a_tier_that_other_machines_reach_does_not_start_without_a_key(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(f"TIERWISE_{name}", value)
    with pytest.raises(BadSetting, match=r"machines reach this tier.*TIERWISE_KEY_FILE.*TIERWISE_ALLOW_OPEN=true"):
        load_settings(END).check(ORDER)


@pytest.mark.parametrize(
    "content",
    [
        "TIERWISE_PORT=9000\n",
        "# ours\n\n  export TIERWISE_PORT = 9000\r\n",
        "\ufeffTIERWISE_PORT: 9000",
        "A=1\nTIERWISE_PORT='9000' # odd",
        b"\xff\nTIERWISE_PORT=9000",
    ],
)
def test_an_env_file_that_is_not_read_is_told_in_one_line(monkeypatch, tmp_path, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = unread_env_file()
    assert said == ".env is for containers and is not read here: TIERWISE_PORT must be exported to count"
    monkeypatch.setenv("TIERWISE_PORT", "9000")
    assert unread_env_file() is None


@pytest.mark.parametrize("content", ["", "A=1\n", "# TIERWISE_PORT=9000\n", "A=TIERWISE_PORT\n", None])
def test_an_env_file_without_settings_of_ours_is_nobody_s_business(monkeypatch, tmp_path, content):
    monkeypatch.chdir(tmp_path)
    if content is None:
        (tmp_path / ".env").mkdir()
    else:
        (tmp_path / ".env").write_text(content)
    assert unread_env_file() is None


def test_only_names_of_an_env_file_are_shown(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("".join(f"TIERWISE_{name}=secret\n" for name in "ABCDE"))
    assert "TIERWISE_A, TIERWISE_B, TIERWISE_C, ... must" in unread_env_file()


def test_origins_are_a_list(monkeypatch):
    monkeypatch.setenv("TIERWISE_CORS_ORIGINS", "https://app.example, http://localhost:5173,http://[::1]:80")
    assert load_settings(END).cors_origins == ("https://app.example", "http://localhost:5173", "http://[::1]:80")
    monkeypatch.setenv("TIERWISE_CORS_ORIGINS", "")
    assert load_settings(END).cors_origins == ()


@pytest.mark.parametrize(
    "given", ["https://app.example/", "app.example", "https://*.example", "https://a.example/page"]
)
def test_what_no_browser_sends_as_an_origin_is_refused(monkeypatch, given):
    monkeypatch.setenv("TIERWISE_CORS_ORIGINS", f"https://app.example,{given}")
    with pytest.raises(BadSetting, match=r"TIERWISE_CORS_ORIGINS.*without a path"):
        load_settings(END)


@pytest.mark.parametrize("name", ["policy_dir", "state_dir", "ledger"])
def test_an_empty_path_means_none_and_not_the_folder_where_a_tier_starts(name, monkeypatch):
    monkeypatch.setenv(f"TIERWISE_{name.upper()}", "")
    assert getattr(Settings(tier="end"), name) is None

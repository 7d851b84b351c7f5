"""Every policy through `options.policy` on three live tiers: where texts go, what is refused, what is remembered."""

import asyncio
import json

import pytest

from shared.errors import BadSetting, UnknownPolicy
from shared.policies import load, names
from shared.web.app import create_app
from shared.web.settings import Settings

TIERS = ("end", "edge", "cloud")
WHOLE_MODEL = ("early-exit", "splitee", "splitee-s", "i-splitee")
BANDITS = ("adaee", "splitee", "splitee-s", "i-splitee")


def path(result):
    return [hop["tier"] for hop in result["hops"]]


def info(tiers, tier="end"):
    import httpx

    async def get():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(tiers.apps[tier]), base_url="http://x") as client:
            return (await client.get("/info")).json()

    return asyncio.run(get())


def refused(tiers, **options):
    response = asyncio.run(tiers.ask("a fine film", **options))
    assert response.status_code == 422, response.text
    return response.json()["detail"]


@pytest.mark.parametrize("policy", sorted(set(names(TIERS)) - {"oracle", *WHOLE_MODEL}))
def test_each_policy_answers_live(either, sentences, policy):
    results = either.results(sentences, policy=policy)
    assert len(results) == len(sentences)
    assert all(result["degraded"] is None for result in results)


@pytest.mark.parametrize("policy", WHOLE_MODEL)
def test_a_method_that_needs_the_whole_model_is_refused_where_the_tier_holds_a_part(triangle, whole, sentences, policy):
    said = refused(triangle, policy=policy)
    assert said.startswith(f"policy '{policy}' runs the whole model on end, which holds 3 of its 4 layers")
    assert "device-imdb" in said
    assert all(result["degraded"] is None for result in whole.results(sentences, policy=policy))
    assert "edge, which holds 2 of its 4 layers" in refused(whole, policy=policy, tier="edge")


def test_the_oracle_is_for_replay(triangle):
    assert "tierwise replay" in refused(triangle, policy="oracle")


def test_a_service_does_not_start_with_a_policy_that_its_bundle_cannot_run(tiny_bundle):
    with pytest.raises(UnknownPolicy, match="holds 3 of its 4 layers"):
        create_app(Settings(tier="end", bundle=str(tiny_bundle), policy="early-exit"))
    app = create_app(Settings(tier="edge", bundle=str(tiny_bundle), policy="early-exit"))  # it may never be asked
    app.state.tier.worker.close()


ONWARD = """
from shared.policies import STAY, Decision, Policy

class Onward(Policy):
    name = "onward"

    def after(self, where, confidence, draw):
        return Decision(where.reachable[0], 1.0, "policy") if where.reachable else STAY

    def may_offload_after(self, where):
        return bool(where.reachable)
"""


def test_a_policy_of_a_file_decides_on_every_tier(triangle, sentences, tmp_path):
    folder, empty = tmp_path / "policies", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    (folder / "onward.py").write_text(ONWARD)
    load(folder)
    try:
        results = triangle.results(sentences, policy="onward")
        assert [path(result) for result in results] == [["end", "edge", "cloud"]] * len(sentences)
        assert {result["degraded"] for result in results} == {None}
        assert list(info(triangle, "cloud")["own_policies"]) == ["onward"]
    finally:
        load(empty)
    assert "unknown policy 'onward'" in refused(triangle, policy="onward")


# -- before any layer runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean_word", "layernorm_mean", "token_norms"])
def test_dimee_sends_a_text_to_the_tier_of_the_nearest_pool(either, sentences, kind):
    """The pools' means are those of the first three sentences."""
    results = either.results(sentences[:3], policy={"name": "dimee", "signature": kind})
    assert [path(result) for result in results] == [["end"], ["edge"], ["cloud"]]
    assert results[2]["exit_layer"] == 4
    for result in results[:2]:
        (hop,) = result["hops"]
        assert hop["exit_layer"] == hop["layers"] or hop["confidence"] >= 0.55


def test_dimee_never_goes_deeper_than_it_may_and_survives_a_tier_that_is_down(triangle, sentences):
    results = triangle.results(sentences[:3], policy="dimee", max_tier="edge")
    assert [path(result) for result in results] == [["end"], ["edge"], ["edge"]]
    triangle.joined.down.add("cloud")
    hard = triangle.results(sentences[:3], policy="dimee")[2]
    assert (path(hard), hard["degraded"]) == (["end"], "upstream_unavailable")


def test_dimee_needs_the_pools_of_the_tier_that_is_asked(triangle, whole):
    assert "ask that tier" in refused(triangle, policy="dimee", tier="edge")
    assert "run `tierwise calibrate`" in refused(whole, policy="dimee")


def test_adaptive_dimee_moves_the_mean_of_the_pool_and_info_shows_it(triangle, sentences):
    policy = {"name": "dimee", "adaptive": True}
    assert info(triangle)["learned"] == []
    triangle.results(sentences[:3] + sentences[:1], policy=policy)
    (learned,) = info(triangle)["learned"]
    assert learned["policy"]["adaptive"] is True
    assert learned["state"]["sizes"] == [4 + 2, 3 + 1, 2 + 1]
    triangle.results(sentences[:3], policy="dimee")
    assert len(info(triangle)["learned"]) == 1  # DIMEE-F learns nothing


def test_length_decides_by_the_cards_bins(triangle, whole):
    results = triangle.results(["good " * n for n in (10, 11, 13, 14)], policy="length-quantile")
    assert [result["tier"] for result in results] == ["end", "edge", "edge", "cloud"]
    assert "edges must be 2 ascending numbers" in refused(whole, policy="length-quantile")
    backwards = {"name": "length-quantile", "edges": [9, 3]}
    assert "edges must be 2 ascending numbers" in refused(triangle, policy=backwards)


# -- one tier, early --------------------------------------------------------------------------------


def test_early_exit_never_leaves_the_device(whole, sentences):
    for threshold, layers in ((0.0, {1}), (1.0, {4})):
        policy = {"name": "early-exit", "exit_threshold": threshold}
        results = whole.results(sentences, policy=policy)
        assert {tuple(path(result)) for result in results} == {("end",)}
        assert {result["exit_layer"] for result in results} == layers


@pytest.mark.parametrize(
    ("policy", "first", "never"),
    [
        ("deebert", {"entropy_threshold": 1.0}, {"entropy_threshold": 0.0}),
        ("pabee", {"patience": 1}, {"patience": 64}),
    ],
)
def test_deebert_and_pabee_answer_at_their_tier(either, sentences, policy, first, never):
    results = either.results(sentences, policy={"name": policy, **never})
    assert {(*path(result), result["exit_layer"]) for result in results} == {("cloud", 4)}
    results = either.results(sentences, policy={"name": policy, "tier": "edge", **first})
    assert {tuple(path(result)) for result in results} == {("edge",)}
    assert min(result["exit_layer"] for result in results) == (1 if policy == "deebert" else 2)


# -- bandits --------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", [0.0, 1.0])
def test_adaee_answers_with_the_surer_tier(triangle, sentences, arm):
    for result in triangle.results(sentences, policy={"name": "adaee", "arm": arm}):
        assert path(result) == (["end", "cloud"] if arm else ["end"])
        best = max(result["hops"], key=lambda hop: hop["confidence"])
        assert (result["label"], result["confidence"]) == (best["label"], best["confidence"])
    assert info(triangle)["learned"] == []  # a fixed arm learns nothing


def test_a_fixed_split_hands_over_what_the_device_is_unsure_of(whole, sentences):
    policy = {"name": "splitee", "arm": 2, "exit_threshold": 0.0}
    middle = sorted(result["confidence"] for result in whole.results(sentences, policy=policy))[6]
    policy["exit_threshold"] = middle
    results = whole.results(sentences, policy=policy)
    assert {tuple(path(result)) for result in results} == {("end",), ("end", "cloud")}
    for result in results:
        first, *rest = result["hops"]
        assert first["exit_layer"] == 2
        assert bool(rest) == (first["confidence"] < middle)
        assert all(hop["exit_layer"] == 4 for hop in rest)
    last = whole.results(sentences, policy={**policy, "arm": 4})
    assert {(*path(result), result["exit_layer"]) for result in last} == {("end", 4)}
    assert "arm 5 is deeper than end's 4" in refused(whole, policy={**policy, "arm": 5})


@pytest.mark.parametrize("policy", BANDITS)
def test_every_arm_is_tried_once_before_any_is_tried_again(whole, sentences, policy):
    arms = {"adaee": 6, "i-splitee": 2}.get(policy, 4)
    for n in range(arms):
        whole.results(sentences[n % 12], policy=policy)
    (learned,) = info(whole)["learned"]
    assert learned["state"]["rounds"] == arms
    assert min(learned["state"]["counts"]) >= 1


def test_concurrent_requests_lose_no_update(whole, sentences):
    async def all_at_once():
        return await asyncio.gather(*(whole.ask(text, policy="splitee") for text in sentences * 3))

    assert {response.status_code for response in asyncio.run(all_at_once())} == {200}
    (learned,) = info(whole)["learned"]
    assert learned["state"]["rounds"] == sum(learned["state"]["counts"]) == 36


def test_what_failed_to_be_offloaded_teaches_nothing(whole, sentences):
    whole.joined.down.add("cloud")
    results = whole.results(sentences, policy={"name": "splitee", "exit_threshold": 1.0})  # all were to leave
    assert {result["degraded"] for result in results} == {"upstream_unavailable"}
    whole.results(sentences, policy={"name": "splitee", "exit_threshold": 1.0}, max_tier="end")
    assert info(whole)["learned"] == []


# -- memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["adaee", "recserve", {"name": "dimee", "adaptive": True}])
def test_what_was_learned_survives_a_restart(build_tiers, sentences, tmp_path, policy):
    links = {"end": ("edge", "cloud"), "edge": ("cloud",), "cloud": ()}
    first = build_tiers(links, state_dir=tmp_path)
    first.results(sentences, policy=policy)
    asyncio.run(first.apps["end"].state.front.states.close())
    learned = info(first)["learned"]
    assert len(learned) == 1
    assert info(build_tiers(links, state_dir=tmp_path))["learned"] == learned
    assert not list(tmp_path.glob("*.new"))


def test_no_other_parameters_push_out_what_the_default_policy_learned(build_tiers, sentences, monkeypatch):
    monkeypatch.setattr("shared.policies.states.LIMIT", 2)
    tiers = build_tiers({"end": ("edge", "cloud"), "edge": ("cloud",), "cloud": ()}, policy="adaee")
    tiers.results(sentences)
    for cost in range(1, 6):
        tiers.results(sentences[:1], policy={"name": "adaee", "offload_cost": float(cost)})
    default, newest = info(tiers)["learned"]
    assert (default["policy"]["offload_cost"], default["state"]["rounds"]) == (0.1, len(sentences))
    assert newest["policy"]["offload_cost"] == 5.0


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"{\\"name\\": \\"adaee\\"}": {}}'])
def test_a_state_that_cannot_be_read_stops_the_start(tiny_bundle, tmp_path, content):
    settings = Settings(tier="end", bundle=str(tiny_bundle), state_dir=tmp_path)
    app = create_app(settings)
    app.state.tier.worker.close()
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    with pytest.raises(BadSetting, match="no state that this tier can go on from"):
        create_app(settings)


def test_a_state_of_other_arms_stops_the_start(whole_bundle, tmp_path):
    settings = Settings(tier="end", bundle=str(whole_bundle), state_dir=tmp_path)
    app = create_app(settings)
    app.state.tier.worker.close()
    (file,) = tmp_path.iterdir()
    spec = {"name": "adaee", "exploration": 1.0, "arm": None, "offload_cost": 0.1}
    state = {"arms": [0.5], "rounds": 1, "counts": [1], "totals": [0.5]}
    file.write_text(json.dumps({json.dumps(spec, sort_keys=True): state}))
    with pytest.raises(BadSetting, match="no state of 'adaee'"):
        create_app(settings)


def test_a_folder_that_cannot_be_written_stops_the_start(tiny_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSetting, match="TIERWISE_STATE_DIR: cannot write"):
        create_app(Settings(tier="end", bundle=str(tiny_bundle), state_dir=tmp_path / "file" / "states"))


def test_a_policy_file_decides_where_a_request_names_no_policy(build_tiers, sentences, tmp_path):
    spec = {"name": "collaborative", "offload_threshold": 1.0, "theta": 0.0}
    file = tmp_path / "plan.policy.json"
    file.write_text(json.dumps(spec))
    tiers = build_tiers({"end": ("edge",), "edge": ()}, policy=str(file))
    assert info(tiers)["policy"]["offload_threshold"] == 1.0
    assert [path(result) for result in tiers.results(sentences)] == [["end", "edge"]] * len(sentences)
    assert [path(result) for result in tiers.results(sentences, policy="end-only")] == [["end"]] * len(sentences)
    counted = 'tierwise_request_duration_seconds_count{outcome="ok",policy="collaborative",tier="end"}'
    assert tiers.metrics("end")[counted] == 1

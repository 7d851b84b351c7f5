"""/v1/infer, the call between tiers: rows of hops, for exactly the texts that were asked about."""

import json

import httpx
import pytest
from structlog.testing import capture_logs


def ask(caller, given, **changes):
    body = {
        "version": 2,
        "request_id": "r-1",
        "call": "c-1",
        "seed": "r-1",
        "indices": list(range(len(given))),
        "texts": [{"text": text} for text in given],
        "policy": {"name": "collaborative"},
        **changes,
    }
    return caller.post(json.dumps(body), "/v1/infer")


@pytest.fixture(scope="module")
def last(serve):
    """The cloud tier, which has no link."""
    return serve(tier="cloud")


def test_the_last_tier_answers_with_its_own_hop(last):
    answer = ask(last, ["a fine film", "the plot is thin"]).json()
    assert set(answer) == {"version", "call", "rows", "total_ms"}
    assert (answer["call"], [row["index"] for row in answer["rows"]]) == ("c-1", [0, 1])
    assert answer["total_ms"] > 0
    for row in answer["rows"]:
        (hop,) = row["hops"]
        assert (hop["tier"], hop["layers"], hop["offloaded_to"], hop["link"]) == ("cloud", 4, None, None)
        assert row["degraded"] is None


def test_draws_follow_the_indices_of_the_whole_request(last):
    whole = ask(last, ["a film", "a plot", "a story"]).json()["rows"]
    part = ask(last, ["a story"], indices=[2]).json()["rows"]
    assert part[0]["hops"][0]["draw"] == whole[2]["hops"][0]["draw"] != whole[0]["hops"][0]["draw"]


def test_an_unreadable_text_is_a_row_without_hops(last):
    rows = ask(last, ["a fine film", "\u200b", "a plot"]).json()["rows"]
    assert [len(row["hops"]) for row in rows] == [1, 0, 1]


def test_an_unreadable_text_does_not_travel_and_its_neighbours_do(serve, edge, always):
    rows = ask(serve(edge=edge), ["a fine film", "\u200b", "a plot"], policy=always).json()["rows"]
    assert [[hop["tier"] for hop in row["hops"]] for row in rows] == [["end", "edge"], [], ["end", "edge"]]
    assert [text["text"] for text in edge.bodies[0]["texts"]] == ["a fine film", "a plot"]
    assert edge.bodies[0]["indices"] == [0, 2]


def test_an_unreadable_text_whose_upstream_failed_is_not_sent_a_second_time(serve):
    asked = []

    def refuses(request):
        asked.append(request)
        return httpx.Response(400)

    (row,) = ask(serve(edge=refuses), ["\u200b"], policy={"name": "edge-only"}).json()["rows"]
    assert (row["hops"], len(asked)) == ([], 1)


@pytest.mark.parametrize("policy", ["collaborative", "tabi", "random", "cloud-only"])
def test_a_tier_that_must_answer_does(serve, cloud, policy):
    rows = ask(serve(tier="edge", cloud=cloud), ["a fine film"] * 8, policy={"name": policy}, target="edge").json()[
        "rows"
    ]
    assert all([hop["tier"] for hop in row["hops"]] == ["edge"] for row in rows)
    assert cloud.requests == []


def test_a_text_for_a_further_tier_is_passed_on_without_a_hop(serve, cloud):
    caller = serve(tier="edge", cloud=cloud)
    (row,) = ask(caller, ["a fine film"], policy={"name": "cloud-only"}, target="cloud").json()["rows"]
    assert [hop["tier"] for hop in row["hops"]] == ["cloud"]
    assert cloud.bodies[0]["target"] == "cloud"
    assert caller.samples()["tierwise_exits_total", "2"] == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"version": 1}, "contract 2", id="another contract version"),
        pytest.param({"version": 1, "call": None}, "contract 2", id="a caller of before calls had ids"),
        pytest.param({"call": None}, "call", id="no id of the call"),
        pytest.param({"indices": [0, 1]}, "one index per text", id="more indices than texts"),
        pytest.param({"texts": []}, "one index per text", id="an index too many"),
        pytest.param({"texts": [{"text": " "}]}, "texts.0.text", id="a blank text"),
        pytest.param({"texts": ["a fine film"]}, "texts.0", id="a bare string"),
        pytest.param({"target": "end"}, "'end'", id="a target behind this tier"),
        pytest.param({"target": "moon"}, "'moon'", id="an unknown target"),
        pytest.param({"max_tier": "moon"}, "'moon'", id="an unknown max_tier"),
        pytest.param({"policy": {}}, "policy", id="no policy"),
        pytest.param({"seed": None}, "seed", id="no seed"),
        pytest.param({"more": 1}, "more", id="an unknown field"),
    ],
)
def test_what_breaks_the_contract_is_a_422(serve, cloud, changes, named):
    response = ask(serve(tier="edge", cloud=cloud), ["a fine film"], **changes)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert named in response.json()["detail"]


def test_over_32_texts_are_a_413(last):
    assert ask(last, ["a film"] * 33).status_code == 413


@pytest.mark.parametrize("deadline_ms", [0, -5, 1e-6])
def test_a_deadline_that_has_passed_is_a_504(last, deadline_ms):
    assert ask(last, ["a fine film"], deadline_ms=deadline_ms).status_code == 504


def test_a_call_without_texts_is_a_probe_it_waits_for_the_model_and_costs_nothing(serve, cloud):
    caller = serve(tier="edge", cloud=cloud)
    response = ask(caller, [], indices=[])
    assert (response.status_code, response.json()["rows"]) == (200, [])
    assert cloud.requests == []
    samples = caller.samples()
    assert samples["tierwise_request_duration_seconds_count", "probe", "none"] == 1
    assert samples["tierwise_request_duration_seconds_count", "ok", "collaborative"] == 0
    assert samples["tierwise_stage_duration_seconds_count", "infer"] == 0


@pytest.mark.parametrize(("tier", "coefficient", "times"), [("end", 1, 1), ("end", 0, 0), ("cloud", 1, 0)])
def test_layers_with_importance_are_compiled_at_the_start_only_where_the_default_policy_prunes(
    serve, edge, held_classifier, tmp_path, tier, coefficient, times
):
    (policy := tmp_path / "policy.json").write_text(
        json.dumps({"name": "collaborative", "pruning_coefficient": coefficient})
    )
    warmed = []
    held_classifier.warm_up = lambda **options: warmed.append(options)
    serve(tier=tier, edge=edge if tier == "end" else None, classifier=held_classifier, policy=str(policy))
    assert warmed == [{"importance": True}] * times


@pytest.mark.parametrize(("batch_texts", "told"), [(1, []), (8, [("end", "openvino fp32", 8)])])
def test_a_tier_that_would_batch_on_a_cpu_says_that_it_gains_nothing(serve, batch_texts, told):
    with capture_logs() as logged:
        serve(batch_texts=batch_texts)
    lines = [line for line in logged if line["event"] == "batches_gain_nothing"]
    assert [(line["tier"], line["engine"], line["batch_texts"]) for line in lines] == told


def test_a_policy_of_another_version_of_its_file_is_refused_rather_than_replaced(last):
    with capture_logs() as lines:
        refused = ask(last, ["a film"], policy={"name": "collaborative", "sha256": "0123456789ab"})
    assert refused.status_code == 422
    detail = refused.json()["detail"]
    assert "give every tier the same file" in detail
    assert [line["detail"] for line in lines if line["event"] == "policy_refused"] == [detail]


def test_a_tier_with_other_gates_refuses_those_that_were_sent_by_their_digest(last):
    with capture_logs() as lines:
        refused = ask(last, ["a film"], policy={"name": "path-gates", "profiles": ["ideal/ideal@0123456789ab"]})
    assert refused.status_code == 422
    detail = refused.json()["detail"]
    assert "sent on with the gates ideal/ideal@0123456789ab; this tier's card has others" in detail
    assert [line["detail"] for line in lines if line["event"] == "policy_refused"] == [detail]


@pytest.mark.parametrize(
    ("policy", "detail"),
    [
        ({"name": "path-gates", "profiles": []}, "needs gates"),
        ({"name": "path-gates", "profiles": [{"links": "ideal/ideal", "tiers": {}}]}, "end has gates at 0 exits"),
        ({"name": "jei-dnn", "gates": {}}, "needs a gate for each"),
        ({"name": "network-aware", "gains": {}}, "needs each tier's gains"),
        ({"name": "oracle"}, "knows the labels"),
    ],
)
@pytest.mark.parametrize("target", [None, "edge", "cloud"])
def test_a_policy_that_lacks_what_the_tiers_need_is_refused(serve, cloud, policy, detail, target):
    refused = ask(serve(tier="edge", cloud=cloud), ["a fine film"], policy=policy, target=target)
    assert refused.status_code == 422
    assert detail in refused.json()["detail"]
    assert cloud.requests == []


def test_a_tier_with_few_layers_passes_on_a_text_of_a_method_that_runs_all(serve, cloud):
    (row,) = ask(
        serve(tier="edge", cloud=cloud), ["a fine film"], policy={"name": "splitee", "arm": 3}, target="cloud"
    ).json()["rows"]
    assert [hop["tier"] for hop in row["hops"]] == ["cloud"]

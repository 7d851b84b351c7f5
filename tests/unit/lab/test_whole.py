"""Whole models: the network that is exported, and the client that asks it."""

import asyncio

import httpx
import numpy as np
import pytest

from lab.data.examples import Example
from lab.live.client import NoAnswer, TextRefused
from lab.whole import build
from lab.whole.build import whole_model
from lab.whole.client import Place, WholeClient
from lab.whole.runtimes import inputs_of
from lab.whole.service import Answer
from shared.model.classifier import load_classifier, read_trained

ANSWER = Answer(
    label="positive",
    probabilities={"negative": 0.25, "positive": 0.75},
    truncated=False,
    tokenize_ms=0.5,
    infer_ms=2.0,
)


@pytest.mark.parametrize(("classifier", "layers"), [("bert-3", 3), ("mpnet-4", 4), ("mpnet-4", 2)])
@pytest.mark.parametrize("attention", [None, "eager"])
def test_a_whole_model_is_the_tier_s_last_exit(tiny_bundle, sentences, classifier, layers, attention):
    folder = tiny_bundle / classifier
    ours = load_classifier(folder, layers=layers, max_tokens=64, engine="torch", precision="fp32")
    texts = [ours.encode(text) for text in sentences]
    whole = whole_model(read_trained(folder), layers, attention)
    given = inputs_of(texts, ours.tokens.pad_id, multiple=32)
    torch = pytest.importorskip("torch")
    theirs = whole(*(torch.from_numpy(array) for array in given.values())).numpy()
    last = np.stack([trace.logits[-1] for trace in ours.run(texts, None)])
    assert np.abs(theirs - last).max() < 1e-4


def asked(example, *, link="ideal", status=200, content=None):
    place = Place("http://whole", "whole cloud-only", "cloud", 4, "abc", "end", link)
    body = ANSWER.model_dump_json() if content is None else content
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))

    async def ask():
        client = WholeClient(place, transport=transport)
        try:
            return await client.ask(example)
        finally:
            await client.close()

    return asyncio.run(ask())


def test_an_answer_has_the_form_of_a_tier_s_with_the_link_that_it_crossed():
    result = asked(Example("a fine film", None, 1), link="lte")
    (hop,) = result.hops
    assert (result.label, result.confidence, result.tier, result.exit_layer) == ("positive", 0.75, "cloud", 4)
    assert (hop.layers, hop.words_in, hop.timings_ms["infer"], hop.timings_ms["total"]) == (4, 3, 2.0, 2.5)
    assert (hop.link.source, hop.link.target, hop.link.profile, hop.link.backend) == (
        "end",
        "cloud",
        "lte",
        "simulated",
    )
    assert (hop.link.request_bytes, hop.link.response_bytes) == (23, len(ANSWER.model_dump_json()))
    assert hop.link.ms > 10  # half of lte's round trip at the very least, less what the service took


def test_a_whole_model_on_the_device_crosses_no_link():
    assert asked(Example("a fine film", None, 1), link=None).hops[0].link is None


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        ({"status": 422, "content": '{"detail":"no word is known"}'}, TextRefused, "^422: no word is known$"),
        ({"status": 500}, NoAnswer, "^whole cloud-only answered 500"),
        ({"content": "{}"}, NoAnswer, "^whole cloud-only answered 200"),
    ],
)
def test_what_is_no_answer_is_told(answer, error, told):
    with pytest.raises(error, match=told):
        asked(Example("a fine film", None, 1), **answer)


def test_a_pair_is_refused():
    with pytest.raises(NoAnswer, match="whole models read one text"):
        asked(Example("a fine film", "or not", 1))


def test_rivals_that_are_not_installed_are_named_before_anything_is_built(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "PACKAGES", ("no-such-package",))
    with pytest.raises(build.BadSetting, match=r"install tierwise\[rivals,torch\]"):
        build.versions()

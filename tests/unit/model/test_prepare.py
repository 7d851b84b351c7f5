"""What an image holds of a model: what its tier will look for. No base weights are needed here: nothing is built."""

import pytest

from shared.errors import BadSetting
from shared.model import classifier, prepare
from shared.model.bundle import load_bundle


@pytest.fixture
def recipes(monkeypatch):
    """Every recipe that something wants built."""
    wanted = []

    class Enough(Exception):
        pass

    def note(recipe, progress=None):
        wanted.append(recipe)
        raise Enough

    def of(make, *arguments, **options):
        with pytest.raises(Enough):
            make(*arguments, **options)
        return wanted[-1]

    monkeypatch.setattr(classifier, "built", note)
    monkeypatch.setattr(prepare, "built", note)
    return of


@pytest.mark.parametrize("precision", ["auto", "int8", "fp32"])
@pytest.mark.parametrize(
    ("name", "tier"), [("collaborative", "end"), ("collaborative", "edge"), ("device-imdb", "end")]
)
def test_a_tier_finds_what_was_prepared_for_it(recipes, name, tier, precision):
    bundle = load_bundle(name)
    model = bundle.tiers[tier]
    sought = recipes(
        classifier.load_classifier,
        bundle.folder / model.network,
        layers=model.layers,
        max_tokens=model.max_tokens,
        engine="openvino",
        precision=precision,
    )
    assert recipes(prepare.prepare, bundle, tier, precision).digest == sought.digest


def test_bf16_can_be_prepared_where_the_processor_has_none(recipes, monkeypatch):
    monkeypatch.setattr(prepare, "capabilities", lambda: ["FP32"])
    bundle = load_bundle("collaborative")
    assert recipes(prepare.prepare, bundle, "end", "bf16") == recipes(prepare.prepare, bundle, "end", "fp32")


def test_what_cannot_be_prepared_is_told(tiny_bundle):
    with pytest.raises(BadSetting, match="bundle collaborative has no tier 'device': it has end, edge, cloud"):
        prepare.prepare(load_bundle("collaborative"), "device")
    with pytest.raises(BadSetting, match="no quantization table"):
        prepare.prepare(load_bundle(str(tiny_bundle)), "end", "int8")


@pytest.mark.parametrize(
    ("name", "tier", "classifier"),
    [("collaborative", "end", "collaborative/minilm-6"), ("device-imdb", "cloud", "collaborative/mpnet-12")],
)
def test_a_copy_has_the_bundle_and_the_tier_s_classifier_alone(tmp_path, name, tier, classifier):
    prepare.copy(load_bundle(name), tier, tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    inside = {f"{classifier}/{file}" for file in ("adapters.safetensors", "network.json", "quantization.safetensors")}
    assert found == inside | {f"{name}/{file}" for file in ("bundle.json", "card.json", "pools.safetensors")}

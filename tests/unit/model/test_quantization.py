"""Int8 by hand: what is rounded to what, and that smoothing alone changes nothing."""

import doctest
import shutil

import numpy as np
import pytest

import shared.model.quantization
from shared.errors import WrongWeights
from shared.model.base import Checkpoint, read_config, read_layer
from shared.model.graphs import layer_graph
from shared.model.quantization import INPUTS, Input, load_table, rounded, save_table, smoothed, smoothing
from shared.model.runtime import ov


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_printed_example_is_true():
    assert doctest.testmod(shared.model.quantization) == (0, 1)


def test_every_output_channel_is_rounded_by_its_own_greatest_weight():
    weight = np.array([[1.27, -0.64, 0.004], [0.0, 12.7, -25.4], [0.0, 0.0, 0.0]], dtype=np.float32)
    values, step = rounded(weight)
    assert (values.dtype, step.dtype, step.shape) == (np.int8, np.float32, (3, 1))
    assert values.tolist() == [[127, -64, 0], [0, 64, -127], [0, 0, 0]]  # 12.7 / .2 = 63.5, to the even 64
    assert step[:2, 0].tolist() == pytest.approx([0.01, 0.2])


def test_rounding_is_off_by_half_a_step_at_most():
    weight = normal(16, 24)
    values, step = rounded(weight)
    assert np.abs(values * step - weight).max(1) == pytest.approx(step[:, 0] / 2, rel=0.2)
    assert (np.abs(values * step - weight) <= step * 0.5001).all()


def test_smoothing_factors_by_hand():
    # |x| up to 16 and 1, weights up to 1: 16^.95 and 1, divided by their geometric mean 16^.475
    factors = smoothing(np.array([16.0, 1.0]), [np.array([[1.0, -0.5]]), np.array([[0.2, 1.0]])])
    assert factors.tolist() == pytest.approx([16**0.475, 16**-0.475], rel=1e-3)
    # |x| alike, weights up to 16 and 1: 16^-.05 and 1
    factors = smoothing(np.array([1.0, 1.0]), [np.array([[16.0, 1.0]])])
    assert factors.tolist() == pytest.approx([16**-0.025, 16**0.025], rel=1e-3)


def test_smoothing_factors_have_geometric_mean_one_and_survive_fp16():
    factors = smoothing(np.abs(normal(64)) * 50, [normal(8, 64)])
    assert np.log(factors).mean() == pytest.approx(0, abs=1e-3)
    assert np.array_equal(factors, factors.astype(np.float16).astype(np.float32))


def test_a_channel_that_is_never_used_gets_a_finite_factor():
    factors = smoothing(np.array([0.0, 1.0]), [np.array([[0.0, 1.0]])])
    assert np.isfinite(factors).all()
    assert (factors > 0).all()


@pytest.fixture(params=["bert", "mpnet"])
def base(request, base_on_disk):
    return base_on_disk(request.param)


@pytest.fixture
def table():
    """Factors far from one; ranges that cut nothing off."""
    sizes = {"qkv": 32, "o": 32, "up": 32, "down": 64}
    return {
        name: Input(-8.0, 8.0, np.exp(normal(size)).astype(np.float16).astype(np.float32))
        for name, size in sizes.items()
    }


def layer_of(base, n=0):
    config = read_config(str(base))
    layer = read_layer(Checkpoint(base), config, n)
    noisy = {part: (weight, bias + normal(*bias.shape)) for part, (weight, bias) in layer.items()}
    return config, noisy


def test_a_smoothed_map_of_a_smoothed_input_gives_what_the_map_gave(base, table):
    _, layer = layer_of(base)
    other = smoothed(layer, table)
    for name, parts in INPUTS.items():
        x = normal(*table[name].smooth.shape)
        for part in parts:
            expected = layer[part][0] @ x + layer[part][1]
            if part == "v":  # what `o` divides by
                expected = expected / table["o"].smooth
            found = other[part][0] @ (x / table[name].smooth) + other[part][1]
            assert found == pytest.approx(expected, abs=1e-4), part
    assert other["norm"] is layer["norm"]
    assert other["attention_norm"] is layer["attention_norm"]


def output(graph, x):
    bias, queries = np.zeros((1, 1, 1, x.shape[1]), np.float32), np.ones((1, 1, 1, x.shape[1]), np.float32)
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return compiled([x, bias, queries])[0]


def test_the_factors_of_o_moved_into_v_change_nothing_in_fp32(base, table):
    config, layer = layer_of(base)
    alone = {name: Input(given.low, given.high, np.ones_like(given.smooth)) for name, given in table.items()}
    alone["o"] = table["o"]
    x = normal(1, 16, 32)
    moved = layer_graph(smoothed(layer, alone), config, None)
    assert output(moved, x) == pytest.approx(output(layer_graph(layer, config, None), x), abs=1e-4)


def test_a_layer_with_a_table_is_close_to_the_one_without(base):
    config, layer = layer_of(base)
    plain = {name: Input(-8.0, 8.0, np.ones(64 if name == "down" else 32, dtype=np.float32)) for name in INPUTS}
    x = normal(1, 16, 32)
    exact = output(layer_graph(layer, config, None), x)
    found = output(layer_graph(layer, config, plain), x)
    assert 0 < np.abs(found - exact).mean() < 0.1  # of values with deviation 1


def test_a_table_comes_back_from_its_file(tmp_path, classifier_on_disk, table):
    folder = shutil.copytree(classifier_on_disk("bert"), tmp_path / "net")
    assert load_table(folder, 2) is None
    save_table(folder, [table, table])
    found = load_table(folder, 2)
    assert len(found) == 2
    for name, given in table.items():
        assert (found[1][name].low, found[1][name].high) == (given.low, given.high)
        assert np.array_equal(found[1][name].smooth, given.smooth)
    assert len(load_table(folder, 1)) == 1  # a shallower tier's


def test_a_table_for_other_adapters_is_refused(tmp_path, classifier_on_disk, table):
    folder = shutil.copytree(classifier_on_disk("bert"), tmp_path / "net")
    save_table(folder, [table])
    shutil.copy(classifier_on_disk("bert", seed=1) / "adapters.safetensors", folder)
    with pytest.raises(WrongWeights, match="found for other adapters: run `tierwise calibrate`, or delete the file"):
        load_table(folder, 1)


def test_a_damaged_table_or_one_of_fewer_layers_is_refused(tmp_path, classifier_on_disk, table):
    folder = shutil.copytree(classifier_on_disk("bert"), tmp_path / "net")
    save_table(folder, [table])
    with pytest.raises(WrongWeights, match="cannot read the quantization table"):
        load_table(folder, 2)
    path = folder / "quantization.safetensors"
    for content in (b"", path.read_bytes()[:-1], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(WrongWeights, match="cannot read the quantization table"):
            load_table(folder, 1)

"""Calibration: a temperature undoes a known scaling, and the quality figures agree with a hand calculation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torch.nn.functional import cross_entropy

from shared.model.calibration import T_MAX, T_MIN, calibrated, expected_calibration_error, fit_temperature, quality


def drawn(n=4000, classes=3, seed=0):
    """Logits and labels that are drawn from them: calibrated by construction."""
    noise = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=noise, dtype=torch.float64) * 2
    return logits.numpy(), torch.multinomial(logits.softmax(-1), 1, generator=noise)[:, 0].numpy()


def softmax(logits):
    """The reference's."""
    return torch.from_numpy(logits).softmax(-1).numpy()


def test_every_exit_is_divided_by_its_own_temperature():
    z = 2 * math.log(3)  # odds of 9; at T = 2 of 3, at T = 0.5 of 81
    logits = np.array([[[z, 0.0]], [[z, 0.0]]])  # [E=2, B=1, C=2]
    assert calibrated(logits, [2.0, 0.5])[:, 0, 0].tolist() == pytest.approx([3 / 4, 81 / 82])
    assert calibrated(logits, 1.0)[:, 0, 0].tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0, 10.0])
def test_the_temperature_of_scaled_logits_is_the_scale(scale):
    logits, labels = drawn()
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.06)  # 4,000 draws: a few percent
    own = fit_temperature(logits, labels)
    assert fit_temperature(logits * scale, labels) == pytest.approx(own * scale, rel=1e-3)


def test_it_is_the_minimum_of_the_nll():
    logits, labels = drawn(n=300)
    best = fit_temperature(logits * 2.5, labels)
    at = [quality(softmax(logits * 2.5 / (best * step)), labels).nll for step in (0.97, 1.0, 1.03)]
    assert at[1] < min(at[0], at[2])


def test_all_right_or_all_wrong_answers_reach_the_bounds():
    logits = np.array([[2.0, 0.0], [0.0, 3.0]])
    assert T_MIN <= fit_temperature(logits, np.array([0, 1])) < 0.07  # below, the NLL is 0 to the last bit
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(T_MAX, rel=1e-3)


@given(st.integers(0, 1000), st.floats(0.2, 8.0))
def test_calibration_keeps_every_label_and_never_worsens_the_nll(seed, scale):
    logits, labels = drawn(n=60, seed=seed)
    logits = logits * scale
    temperature = fit_temperature(logits, labels)
    assert T_MIN <= temperature <= T_MAX
    before, after = softmax(logits), softmax(logits / temperature)
    assert after.argmax(-1).tolist() == before.argmax(-1).tolist()
    assert quality(after, labels).nll <= quality(before, labels).nll + 1e-6


def test_a_fitted_temperature_mends_the_ece_of_overconfident_answers():
    logits, labels = drawn()
    logits = logits * 4
    mended = logits / fit_temperature(logits, labels)
    assert quality(softmax(logits), labels).ece > 0.15
    assert quality(softmax(mended), labels).ece < 0.03


def test_ece_of_hand_examples():
    # bins of 1/15: .92 and .91 share [13/15, 14/15), .55 is alone in [8/15, 9/15)
    probabilities = np.array([[0.92, 0.08], [0.09, 0.91], [0.55, 0.45]])
    labels = np.array([0, 0, 0])  # right, wrong, right
    by_hand = (2 * abs(0.915 - 0.5) + 1 * abs(0.55 - 1.0)) / 3
    assert expected_calibration_error(probabilities, labels) == pytest.approx(by_hand)
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(
        abs((0.92 + 0.91 + 0.55) / 3 - 2 / 3)
    )


def test_ece_of_certain_answers_is_their_error_rate():
    certain = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert expected_calibration_error(certain, np.array([0, 0, 1, 1])) == 0
    assert expected_calibration_error(certain, np.array([0, 1, 1, 1])) == pytest.approx(0.25)


def test_quality_of_a_hand_example():
    probabilities = np.array([[0.8, 0.2], [0.4, 0.6]])
    found = quality(probabilities, np.array([0, 0]))
    assert found.accuracy == 0.5
    assert found.nll == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert found.brier == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert found.ece == pytest.approx((abs(0.8 - 1) + abs(0.6 - 0)) / 2)


def test_a_certain_and_wrong_answer_has_a_finite_nll():
    assert math.isfinite(quality(np.array([[1.0, 0.0]]), np.array([1])).nll)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_and_the_figures_agree_with_torch_and_scikit_learn(dtype):
    logits, labels = drawn(n=500)
    logits = (logits * 3).astype(dtype)
    found = calibrated(logits[None], [1.5])[0]
    assert found.dtype == dtype
    assert found == pytest.approx(softmax(logits / dtype(1.5)), abs=1e-6)
    figures = quality(found, labels)
    expected = cross_entropy(torch.from_numpy(logits / dtype(1.5)), torch.from_numpy(labels)).item()
    assert figures.nll == pytest.approx(expected, abs=1e-6)
    exact = softmax(logits.astype(np.float64) / 1.5)
    assert figures.nll == pytest.approx(log_loss(labels, exact), abs=1e-6)
    assert figures.brier == pytest.approx(brier_score_loss(labels, exact, scale_by_half=False), abs=1e-6)
    assert figures.accuracy == (found.argmax(-1) == labels).mean()


def test_the_temperature_s_nll_is_torch_s_cross_entropy():
    logits, labels = drawn(n=200)
    grid = np.exp(np.linspace(math.log(T_MIN), math.log(T_MAX), 4000))
    at = [cross_entropy(torch.from_numpy(logits / t), torch.from_numpy(labels)).item() for t in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[np.argmin(at)], rel=2e-3)


def test_logits_too_large_for_exp_give_probabilities():
    assert calibrated(np.array([[[1000.0, 0.0]]], dtype=np.float32), 1.0).tolist() == [[[1.0, 0.0]]]

"""Signatures of texts, DIMEE's pools and alpha from validation data, and the file they are kept in."""

import numpy as np
import pytest
import torch

from lab.fit import pools as lab
from lab.fit.exits import early_exit_rules
from lab.stats import judged, score
from shared.errors import BadSetting
from shared.model.bundle import Metric
from shared.model.pools import FILE, Pools, Signature, read_pools


def exits(*rows):
    """Calibrated probabilities [N, E, 2] from the chance of label 1 at each exit."""
    p = np.array(rows, dtype=np.float32)
    return np.stack([1 - p, p], -1)


END = exits([0.95, 0.97], [0.6, 0.7], [0.55, 0.6], [0.6, 0.65])
EDGE = exits([0.95, 0.97, 0.98], [0.6, 0.7, 0.95], [0.55, 0.6, 0.7], [0.6, 0.65, 0.7])
CLOUD = exits([0.99] * 4, [0.99] * 4, [0.9] * 4, [0.3] * 4)
LABELS = np.ones(4, dtype=np.int64)


# -- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "mpnet", "roberta"])
def test_a_signature_is_a_mean_over_the_texts_own_tokens(tiny_base, tiny_classifier, sentences, family):
    classifier, embeddings = tiny_classifier(family), tiny_base(family)[0].embeddings
    text = classifier.encode(sentences[0])
    own = [i for i, word in enumerate(text.word_of) if word >= 0]
    expected = embeddings.word_embeddings.weight[[text.ids[i] for i in own]].mean(0)
    assert classifier.signature(text, Signature.MEAN_WORD) == pytest.approx(expected.tolist(), abs=1e-6)
    embedded = embeddings(input_ids=torch.tensor([text.ids]))[0]
    assert classifier.signature(text, Signature.LAYERNORM_MEAN) == pytest.approx(
        embedded[own].mean(0).tolist(), abs=1e-6
    )


def test_token_norms_are_those_of_the_padded_sequence(tiny_base, tiny_classifier, sentences):
    classifier = tiny_classifier("bert", max_tokens=40)
    text = classifier.encode(sentences[0])
    norms = classifier.signature(text, Signature.TOKEN_NORMS)
    assert len(norms) == 40
    padded = torch.tensor([text.ids + [classifier.tokens.pad_id] * (40 - len(text.ids))])
    expected = tiny_base("bert")[0].embeddings(input_ids=padded)[0].norm(dim=-1)
    assert norms == pytest.approx(expected.tolist(), abs=1e-5)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_pools_come_back_as_they_were_written(tmp_path):
    pools = Pools((3, 2), {Signature.MEAN_WORD: ((0.5, 1.0), (2.0, -1.0)), Signature.TOKEN_NORMS: ((1.0,), (2.0,))})
    pools.save(tmp_path)
    assert read_pools((tmp_path / FILE).read_bytes(), "x") == pools


def test_a_broken_file_is_named(tmp_path):
    with pytest.raises(BadSetting, match="bundle/pools: cannot read the pools"):
        read_pools(b"nothing", "bundle/pools")
    Pools((3, 2, 1), {Signature.MEAN_WORD: ((0.5,), (2.0,))}).save(tmp_path)
    with pytest.raises(BadSetting, match="there are 3 pools"):
        read_pools((tmp_path / FILE).read_bytes(), "x")


# -- alpha, pools, bins -----------------------------------------------------------------------------------------------


def test_a_text_belongs_to_the_first_tier_with_a_sure_exit():
    exited = lab._exited([END, EDGE, CLOUD], LABELS, 0.9, lab.Costs())
    assert exited.pool.tolist() == [0, 1, 2, 2]
    assert exited.at(exited.pool, exited.confidence).tolist() == pytest.approx([0.95, 0.95, 0.9, 0.7])
    assert exited.at(exited.pool, exited.right).tolist() == [True, True, True, False]
    assert exited.at(exited.pool, exited.cost).tolist() == [2.0, 3 + 5.0, 28.0, 28.0]  # exits 1 and 3, cloud


def test_alpha_has_the_greatest_mean_reward_and_every_step_is_on_record():
    alpha, report = lab.choose_alpha([END, EDGE, CLOUD], LABELS, lab.Costs(), within=1.0)
    assert len(report["tried"]) == lab.HALVINGS
    step = report["tried"][-1]
    mu, exited = step["mu"], lab._exited([END, EDGE, CLOUD], LABELS, step["alpha"], lab.Costs())
    mean = (exited.at(exited.pool, exited.confidence) - mu * exited.at(exited.pool, exited.cost)).mean()
    assert step["reward"] == pytest.approx(mean, abs=1e-3)
    assert alpha == report["chosen"]["alpha"]
    assert min(report["chosen"]["pools"]) >= 1


def test_where_every_text_is_alike_there_are_no_pools():
    alpha, report = lab.choose_alpha([END[:1], EDGE[:1], CLOUD[:1]], LABELS[:1], lab.Costs(), within=1.0)
    assert (alpha, report["chosen"]) == (None, None)


def test_costs_of_two_tiers_have_no_edge():
    costs, layers = lab.Costs(), np.array([1, 3])
    assert costs.of(0, 2, layers).tolist() == [2.0, 6.0]
    assert costs.of(1, 2, layers).tolist() == [28.0, 28.0]
    assert costs.of(0, 1, layers).tolist() == [2.0, 6.0]


def test_bins_are_as_large_as_the_pools():
    assert lab.bins(np.array([5, 3, 9, 7, 1, 8]), np.array([2, 3, 1])) == [3, 8]


def test_each_rule_takes_the_fewest_layers_that_cost_little():
    policies, report = early_exit_rules(CLOUD[:3], LABELS[:3], 0.0)
    assert report["full_accuracy"] == 1.0
    assert report["early-exit"]["mean_exit_layer"] == 1.0  # every exit is right already
    assert policies["pabee"] == {"patience": 1}
    assert policies["splitee"] == policies["early-exit"]


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_mcc_and_f1_by_hand():
    said, truth = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 1, 0, 0, 1, 1])
    tp, tn, fp, fn = 3, 1, 1, 1
    expected = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert score(Metric.MCC, said, truth) == pytest.approx(expected)
    assert score(Metric.F1, said, truth) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert score(Metric.ACCURACY, said, truth) == pytest.approx(4 / 6)
    assert score(Metric.MCC, truth * 0, truth) == 0.0


def test_a_card_holds_the_metric_with_its_interval():
    said = np.array([1, 0] * 50)
    assert judged(Metric.ACCURACY, said, said) == {}
    assert judged(Metric.F1, said, said) == {"f1": 1.0, "f1_ci95": [1.0, 1.0]}

"""The held-out arithmetic against tables worked by hand."""

import math

import numpy as np
import pytest

from reward.metrics import Interval, mean_interval
from reward.training.held_out import means_with_intervals, of_pairs, probability_of_chosen


def means(logits, normaliser, epsilon):
    return {name: values.mean() for name, values in of_pairs(logits, normaliser, epsilon).items()}


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_scores_of_gram_md_section_3():
    logits = np.array([[12, 9], [10.5, 8], [12, 9], [10.5, 11]], dtype=np.float32)
    chosen = probability_of_chosen(logits)
    assert chosen[0].tolist() == pytest.approx([0.952574, 0.075858], abs=1e-6)
    assert chosen.mean(axis=1).tolist() == pytest.approx([0.514216, 0.787517], abs=1e-6)


def test_extreme_margins_do_not_overflow():
    logits = np.array([[2000, -2000], [-2000, 2000]], dtype=np.float32)
    assert probability_of_chosen(logits).tolist() == [[1.0, 1.0]]


def test_metrics_by_hand():
    # Four pairs: right in both orders; first position wins twice and right on the mean; the same and exactly a tie;
    # wrong in both orders. Columns: z_A, z_B.
    logits = np.array([[2, 0], [0, 2], [3, 0], [1, 0], [1, 0], [1, 0], [0, 2], [1, 0]], dtype=np.float32)
    normaliser = np.log(np.exp(logits).sum(axis=1) + 1.0)  # one more token with logit 0
    found = means(logits, normaliser, epsilon=0.1)
    assert found["accuracy"] == 2 / 4  # the tie is not right
    assert found["order_consistency"] == 2 / 4
    # Readings won by A: pair 1: yes, no; pair 2: yes, yes; pair 3: yes, yes; pair 4: no, yes.
    assert found["first_position"] == 6 / 8
    margins = [2, 2, 3, -1, 1, -1, -2, -1]  # towards the chosen response
    of_pair = of_pairs(logits, normaliser, epsilon=0.1)
    assert of_pair["accuracy"].tolist() == [1, 1, 0, 0]
    assert of_pair["order_consistency"].tolist() == [1, 0, 0, 1]
    assert of_pair["first_position"].tolist() == [0.5, 1, 1, 0.5]
    assert found["loss"] == pytest.approx(np.mean([-math.log(sigma(m)) + 0.1 * m for m in margins]), abs=1e-7)
    mass = [(math.exp(a) + math.exp(b)) / (math.exp(a) + math.exp(b) + 1) for a, b in logits]
    assert found["label_mass"] == pytest.approx(np.mean(mass), abs=1e-7)


def test_a_judge_that_always_says_a():
    found = means(np.array([[5, 0]] * 6, dtype=np.float32), np.full(6, 6.0, dtype=np.float32), 0.0)
    assert (found["accuracy"], found["order_consistency"], found["first_position"]) == (0.0, 0.0, 1.0)


def test_right_is_strict():
    logits = np.array([[0, 0], [0, 0], [0, 0], [0, 1e-4], [3, 0], [2.9, 0]], dtype=np.float32)
    assert of_pairs(logits, np.ones(6), 0.0)["accuracy"].tolist() == [0, 1, 1]


def test_every_mean_has_its_interval():
    of_pair = {"accuracy": np.array([1.0, 0.0, 1.0, 1.0]), "loss": np.array([0.1, 0.9, 0.3, 0.3])}
    prompts = ["a", "b", "b", "c"]
    found = means_with_intervals(of_pair, prompts, seed=3)
    assert list(found) == [name + end for name in of_pair for end in ("", "_ci_low", "_ci_high")]
    for name, values in of_pair.items():
        expected = mean_interval(values, prompts, seed=3)
        assert (found[name], found[f"{name}_ci_low"], found[f"{name}_ci_high"]) == expected
        assert found[name] == values.mean()


# --- the bootstrap of a mean ------------------------------------------------------------------------------------------


def test_interval_covers_what_independent_values_would_give():
    correct = np.arange(400) % 4 != 0  # 0.75
    value, low, high = mean_interval(correct)
    half_width = 1.96 * math.sqrt(0.75 * 0.25 / 400)  # 0.0424
    assert value == 0.75
    assert (low, high) == pytest.approx((0.75 - half_width, 0.75 + half_width), abs=0.008)
    assert mean_interval(correct) == (value, low, high)  # same seed, same answer
    assert mean_interval(correct, seed=1) != (value, low, high)


def test_interval_takes_an_item_as_one_draw():
    correct = np.repeat(np.arange(40) % 4 != 0, 10)  # ten pairs of a prompt are right or wrong together
    value, low, high = mean_interval(correct, np.repeat(np.arange(40), 10).tolist())
    assert value == 0.75
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 40), abs=0.03)


def test_an_interval_by_hand():
    """Two items: a resample is both (mean 0.75), twice the first (1.0) or twice the second (0.0), by 2:1:1."""
    assert mean_interval(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]) == Interval(0.75, 0.0, 1.0)


def test_missing_values_are_left_out():
    values = np.array([0.0, 1.0, math.nan, 1.0, 0.0] * 40)
    known = mean_interval(values[~np.isnan(values)])
    assert mean_interval(values) == known
    named = [str(position) for position in range(200)]
    assert mean_interval(values, named) == known
    assert all(map(math.isnan, mean_interval(np.array([math.nan]))))
    assert all(map(math.isnan, mean_interval(np.array([]))))

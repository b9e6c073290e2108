"""The held-out arithmetic against tables worked by hand."""

import math

import numpy as np
import pytest

from reward.training.held_out import accuracy_interval, held_out_metrics, probability_of_chosen, right


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
    found = held_out_metrics(logits, normaliser, epsilon=0.1)
    assert found["accuracy"] == 2 / 4  # the tie is not right
    assert found["order_consistency"] == 2 / 4
    # Readings won by A: pair 1: yes, no; pair 2: yes, yes; pair 3: yes, yes; pair 4: no, yes.
    assert found["first_position"] == 6 / 8
    margins = [2, 2, 3, -1, 1, -1, -2, -1]  # towards the chosen response
    assert found["loss"] == pytest.approx(np.mean([-math.log(sigma(m)) + 0.1 * m for m in margins]), abs=1e-7)
    mass = [(math.exp(a) + math.exp(b)) / (math.exp(a) + math.exp(b) + 1) for a, b in logits]
    assert found["label_mass"] == pytest.approx(np.mean(mass), abs=1e-7)


def test_a_judge_that_always_says_a():
    found = held_out_metrics(np.array([[5, 0]] * 6, dtype=np.float32), np.full(6, 6.0, dtype=np.float32), 0.0)
    assert (found["accuracy"], found["order_consistency"], found["first_position"]) == (0.0, 0.0, 1.0)


def test_right_is_strict():
    assert right(np.array([[0.5, 0.5], [0.5, 0.50001], [0.9, 0.1]])).tolist() == [False, True, False]


def test_interval_covers_what_independent_pairs_would_give():
    correct = np.arange(400) % 4 != 0  # 0.75
    low, high = accuracy_interval(correct, range(400))
    half_width = 1.96 * math.sqrt(0.75 * 0.25 / 400)  # 0.0424
    assert low == pytest.approx(0.75 - half_width, abs=0.008)
    assert high == pytest.approx(0.75 + half_width, abs=0.008)


def test_interval_takes_a_prompt_as_one_draw():
    correct = np.repeat(np.arange(40) % 4 != 0, 10)  # ten pairs of a prompt are right or wrong together
    low, high = accuracy_interval(correct, np.repeat(np.arange(40), 10).tolist())
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 40), abs=0.03)
    assert accuracy_interval(correct, np.repeat(np.arange(40), 10).tolist()) == (low, high)  # same seed, same answer

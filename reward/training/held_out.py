"""How good is a judge on pairs it was not trained on: the arithmetic, as functions of label logits.

No torch. Legend: N labelled pairs, each read in both orders; row 2i reads the chosen response of pair i first, row 2i+1
reads it second.
"""

from collections.abc import Hashable, Sequence

import numpy as np


def probability_of_chosen(label_logits: np.ndarray) -> np.ndarray:
    """P(the chosen response is better) of each reading, (N, 2); column 0 read it first, column 1 read it second.

    label_logits: (2N, 2), z_A and z_B. p¹ = σ(z_A¹ - z_B¹), p² = σ(z_B² - z_A²) (gram.md section 3, arXiv 2506.14175).
    """
    margin = label_logits[:, 0].astype(np.float64) - label_logits[:, 1].astype(np.float64)  # (2N,)
    margin = margin.reshape(-1, 2) * np.array([1.0, -1.0])  # (N, 2), towards the chosen response
    return 0.5 * (1.0 + np.tanh(0.5 * margin))  # σ without overflow


def held_out_metrics(label_logits: np.ndarray, log_normaliser: np.ndarray, epsilon: float) -> dict[str, float]:
    """What both readings of all pairs say about the judge.

    label_logits: (2N, 2). log_normaliser: (2N,), log-sum-exp of all logits. `epsilon` is the loss's ε.

    accuracy: the mean of both probabilities is strictly above 0.5. order_consistency: both readings prefer the same
    response; a reading at exactly 0.5 prefers none. first_position: how often the response read first wins, a tie
    counting half; 0.5 without position bias. label_mass: P(A) + P(B) over the vocabulary. loss: the mean of L_ε.
    """
    chosen = probability_of_chosen(label_logits)  # (N, 2)
    margin = (label_logits[:, 0] - label_logits[:, 1]).astype(np.float64).reshape(-1, 2) * np.array([1.0, -1.0])
    preferred = np.sign(chosen - 0.5)  # (N, 2): 1 the chosen response, -1 the rejected one, 0 a tie
    first_wins = (1.0 + preferred * np.array([1.0, -1.0])) / 2.0
    log_mass = np.logaddexp(label_logits[:, 0], label_logits[:, 1]) - log_normaliser
    return {
        "loss": float(np.mean(np.logaddexp(0.0, -margin) + epsilon * margin)),
        "accuracy": float(np.mean(right(chosen))),
        "order_consistency": float(np.mean(preferred[:, 0] * preferred[:, 1] > 0)),
        "first_position": float(np.mean(first_wins)),
        "label_mass": float(np.mean(np.exp(np.minimum(log_mass, 0.0)))),
    }


def right(chosen: np.ndarray) -> np.ndarray:
    """Which pairs are judged right, (N,): the mean over both orders is strictly above 0.5. chosen: (N, 2)."""
    return chosen.mean(axis=1) > 0.5


def accuracy_interval(
    correct: np.ndarray, clusters: Sequence[Hashable], seed: int = 0, resamples: int = 1_000
) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean of `correct`, (N,), by resampling clusters.

    Pairs of one prompt share their question and often a response, so they are not independent: whole prompts are drawn
    with replacement, `clusters[i]` naming the prompt of pair i. Two-sided percentiles 2.5 and 97.5.
    """
    index = {cluster: position for position, cluster in enumerate(dict.fromkeys(clusters))}
    of_pair = np.array([index[cluster] for cluster in clusters])
    sizes = np.bincount(of_pair)  # pairs of each prompt
    hits = np.bincount(of_pair, weights=correct.astype(np.float64))
    draws = np.random.default_rng(seed).integers(len(sizes), size=(resamples, len(sizes)))
    means = hits[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

"""What a set of results says each player is worth. Pure numpy, no torch.

`size` counts all players: the G responses, and the reference too where it plays (it is the last one then). Results
without a verdict are skipped; a player without any verdict gets NaN, never a number.

Legend: G players, M results with a verdict.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reward.errors import SettingsError
from reward.pairing import Pairing, Result

PRIOR = 0.01
"""Precision of the zero-mean normal prior on strengths, a standard deviation of 10 logits. It keeps probabilities of
exactly 1 at finite strengths (±2 for two players, ±16 for 32 in perfect order), takes 1 % off a round robin of 16 and
10 % off a knockout, and steadies long chains of noisy games: the order on a circle of 32 gains (docs/benchmarks.md)."""

LOGIT_CLIP = 4.0
"""Largest logit of a score, a probability of .982. Past it .99 and .9999 tell of a judge's sharpness, not of responses,
and one such outlier would own the standard deviation that advantages are divided by."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """`probability` is on the scale of a win probability. The rest is Bradley-Terry's; all NaN without a verdict.

    `strength` is θ in logits, `standard_error` that of θ, NaN where the results leave no residual to tell it from.
    `component` numbers the sets of players that games with a verdict connect: θ is centred in each by itself, so
    strengths and probabilities of two components do not compare.
    """

    probability: np.ndarray  # (G,) in [0, 1]
    strength: np.ndarray | None = None  # (G,)
    standard_error: np.ndarray | None = None  # (G,)
    component: np.ndarray | None = None  # (G,) integers


def mean_win_probability(size: int, results: Sequence[Result]) -> Estimate:
    """The mean P(win) of each player over its games: comparable where all players have had the same opponents."""
    first, second, prob = _verdicts(results)
    return Estimate(_mean_of_games(size, first, second, prob))


def copeland(size: int, results: Sequence[Result]) -> Estimate:
    """The share of its opponents that each player beat (P > 1/2); an exact tie counts half (Copeland 1951)."""
    first, second, prob = _verdicts(results)
    return Estimate(_mean_of_games(size, first, second, np.heaviside(prob - 0.5, 0.5)))


def bradley_terry(size: int, results: Sequence[Result], prior: float = PRIOR) -> Estimate:
    """Strengths θ that explain the results best when P(i beats j) = σ(θi - θj) (Bradley and Terry 1952).

    Minimises Σ -[p log σ(θi - θj) + (1 - p) log σ(θj - θi)] + prior/2 Σ θ² by Newton's method; `probability` is σ(θ),
    the chance to beat an average member. With `prior` 0 the optimum is finite only where no set of players won
    every game against the rest with P = 1.

    Standard errors come from the sandwich H⁻¹ J H⁻¹, J = Σ (p - σ)² x xᵀ (White, Econometrica 50, 1982), times
    M / (M - free strengths) for the residuals that the fit has used up. The inverse Hessian alone is for outcomes of 0
    and 1: a judge's probabilities spread far less.
    """
    first, second, prob = _verdicts(results)
    component = _components(size, first, second)
    same = component[:, None] == component  # fills the null space of H, on which no gradient lies
    design = np.eye(size)[first] - np.eye(size)[second]  # (M, G)

    def loss(strength: np.ndarray) -> float:
        logit = design @ strength
        return np.sum(np.logaddexp(0, logit) - prob * logit) + prior / 2 * strength @ strength

    strength = np.zeros(size)
    for _ in range(100):
        expected = _sigmoid(design @ strength)
        gradient = design.T @ (expected - prob) + prior * strength
        hessian = (design.T * (expected * (1 - expected))) @ design + prior * np.eye(size)
        if np.linalg.norm(gradient) < 1e-10:
            break
        step = np.linalg.solve(hessian + same, gradient)
        bound = loss(strength) * (1 + 1e-12)  # rounding must not halve the last steps away
        while loss(strength - step) > bound:
            step /= 2
        strength = strength - step

    players = np.bincount(component)
    games = np.bincount(component[first], minlength=len(players))
    spare = games - (players - 1)  # the games of a component less its free strengths
    correction = games / np.where(spare > 0, spare, np.nan)
    half = np.linalg.solve(hessian + same, design.T * (prob - expected))  # (G, M)
    error = np.sqrt(np.sum(half**2, axis=1) * correction[component])
    strength = np.where(players[component] > 1, strength, np.nan)
    return Estimate(_sigmoid(strength), strength, error, component)


AGGREGATIONS: dict[str, Callable[[int, Sequence[Result]], Estimate]] = {
    "mean": mean_win_probability,
    "bradley_terry": bradley_terry,
    "copeland": copeland,
}


def check(pairing: Pairing, aggregation: str) -> None:
    """Raises SettingsError: the aggregation is unknown, or says nothing true about the results of this pairing."""
    if aggregation not in AGGREGATIONS:
        raise SettingsError(f"--reward_aggregation {aggregation} is unknown: choose one of {', '.join(AGGREGATIONS)}")
    if pairing.uses_reference:
        needed, reason = "mean", "with one game a response there is nothing to average or to fit"
    elif pairing.order_dependent:
        needed, reason = "bradley_terry", "responses have different opponents, so counting wins misorders them"
    else:
        return
    if aggregation != needed:
        raise SettingsError(
            f"--reward_pairing {pairing.name} with --reward_aggregation {aggregation}: {reason}: choose "
            f"--reward_aggregation {needed} or --reward_pairing round_robin"
        )


_LEAST = 1 / (1 + np.exp(LOGIT_CLIP))
SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "probability": lambda p: p,
    "margin": lambda p: 2 * p - 1,
    "logit": lambda p: np.log((clipped := np.clip(p, _LEAST, 1 - _LEAST)) / (1 - clipped)),
}


def scale(probability: np.ndarray, name: str) -> np.ndarray:
    """`probability` itself, its margin 2p - 1, or its logit within ±`LOGIT_CLIP` (θ, after Bradley-Terry); NaN stays.

    Raises:
        SettingsError: no scale of that name.
    """
    if name not in SCALES:
        raise SettingsError(f"--reward_scale {name} is unknown: choose one of {', '.join(SCALES)}")
    return SCALES[name](probability)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(logit / 2)) / 2  # exp(-logit) would overflow


def _verdicts(results: Sequence[Result]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns first, second and prob (M,) of the results that have a verdict."""
    table = np.array([result for result in results if result.prob == result.prob], dtype=float).reshape(-1, 3)
    return table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2]


def _mean_of_games(size: int, first: np.ndarray, second: np.ndarray, prob: np.ndarray) -> np.ndarray:
    total = np.bincount(first, prob, size) + np.bincount(second, 1 - prob, size)
    games = np.bincount(first, minlength=size) + np.bincount(second, minlength=size)
    return total / np.where(games > 0, games, np.nan)


def _components(size: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    component = np.arange(size)
    for i, j in zip(first, second, strict=True):
        component[component == component[j]] = component[i]
    return np.unique(component, return_inverse=True)[1]

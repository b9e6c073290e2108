"""Running mean and standard deviation of scores: state that a training loop keeps, never a backend.

A backend reads the moments, so that scores of one call do not depend on each other; the loop adds each rollout's sums
over all ranks afterwards and saves the moments with its checkpoints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward.errors import SettingsError
from reward.types import Metric

_LEAST_STD = 1e-4


@dataclass
class Moments:
    """Count, sum and sum of squares of all scores seen so far."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def normalise(self, score: float) -> float:
        """(score - mean) / standard deviation; before anything was seen the score itself."""
        if not self.count:
            return score
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean**2)
        return (score - mean) / max(math.sqrt(variance), _LEAST_STD)


class Normaliser:
    """The moments of a sum's members, by the path of their metrics (`inner/gram` is member gram of member inner)."""

    def __init__(self, moments: Mapping[str, Moments]):
        self.moments = dict(moments)

    def update(self, metrics: Mapping[str, Metric]) -> None:
        """Adds what a rollout's merged metrics say of each member's `score` and `score_squared`."""
        for path, moments in self.moments.items():
            if f"{path}/score" in metrics:
                total, squares = metrics[f"{path}/score"], metrics[f"{path}/score_squared"]
                moments.count += total.count
                moments.total += total.total
                moments.squares += squares.total

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint; `load` takes it back."""
        return {path: [each.count, each.total, each.squares] for path, each in self.moments.items()}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Raises SettingsError: the checkpoint is of another sum."""
        if state.keys() != self.moments.keys():
            raise SettingsError(
                f"the checkpoint normalises the members {sorted(state)}, this run {sorted(self.moments)}: continue "
                "with the --reward file it was begun with"
            )
        for path, (count, total, squares) in state.items():
            moments = self.moments[path]
            moments.count, moments.total, moments.squares = int(count), total, squares

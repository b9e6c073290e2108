"""Reward backends: anything that answers `score(groups)` with scalars."""

from collections.abc import Sequence

from reward.errors import SettingsError
from reward.metrics import judgment_metrics
from reward.types import Group, GroupScore, Judge, Pair


class PairwiseReward:
    """Scores a response by the probability that it beats the group's reference; needs one judgment a response.

    The score lies in (0, 1), 0.5 is equal to the reference. This is GRAM's scalar reward for PPO (gram.md section 3,
    the idea of ReMax, arXiv 2310.10505). Wrap the judge in `BothOrders` unless its position bias is wanted.
    """

    def __init__(self, judge: Judge, name: str = "gram"):
        self.judge = judge
        self.name = name

    def score(self, groups: Sequence[Group]) -> list[GroupScore]:
        """Raises SettingsError: a group without a reference."""
        for position, group in enumerate(groups):
            if group.reference is None:
                raise SettingsError(
                    f"group {position} has no reference response, and {self.name!r} scores against one: "
                    "choose --reward_reference greedy, initial or dataset"
                )
        pairs = [Pair(group.prompt, response, group.reference) for group in groups for response in group.responses]
        judgments = iter(self.judge.compare(pairs))
        scores = []
        for group in groups:
            own = [next(judgments) for _ in group.responses]
            reasons = tuple(judgment.reason for judgment in own if not judgment.has_verdict)
            scores.append(GroupScore(tuple(judgment.prob_a for judgment in own), judgment_metrics(own), reasons))
        return scores

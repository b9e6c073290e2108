"""What a set of judgments says about its judge, as per-group metrics."""

from collections.abc import Sequence

from reward.types import Judgment


def judgment_metrics(judgments: Sequence[Judgment]) -> tuple[tuple[str, float], ...]:
    """Rates over `judgments`, each in [0, 1]; a metric that no judgment can speak for is left out.

    no_verdict: without an answer. truncated: not read in full. label_mass: P(A) + P(B) over the vocabulary.
    tie: prob_a is exactly 0.5. order_consistency: both reading orders prefer the same response.
    first_position: the response read first wins, over single readings (0.5 for a judge without position bias).
    """
    if not judgments:
        return ()
    decided = [judgment for judgment in judgments if judgment.has_verdict]
    metrics = {
        "no_verdict": [not judgment.has_verdict for judgment in judgments],
        "truncated": [judgment.truncated for judgment in judgments],
        "label_mass": [judgment.label_mass for judgment in decided if judgment.label_mass == judgment.label_mass],
        "tie": [judgment.prob_a == 0.5 for judgment in decided],
        "order_consistency": [_consistent(judgment) for judgment in decided if judgment.readings],
        "first_position": [_first_wins(judgment) for judgment in decided if judgment.readings],
    }
    return tuple((name, sum(values) / len(values)) for name, values in metrics.items() if values)


def _consistent(judgment: Judgment) -> bool:
    given, swapped = judgment.readings
    return (given.prob_a - 0.5) * (swapped.prob_a - 0.5) > 0


def _first_wins(judgment: Judgment) -> float:
    """`readings[0]` read response A first, `readings[1]` read response B first; a tie counts half for each."""
    given, swapped = judgment.readings
    return (_above_half(given.prob_a) + _above_half(1 - swapped.prob_a)) / 2


def _above_half(probability: float) -> float:
    return 0.5 if probability == 0.5 else float(probability > 0.5)

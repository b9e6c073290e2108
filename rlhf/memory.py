"""The memory plan that a recipe prints before it loads anything: which model is where, and its bytes on one rank.

Weights, gradients and optimizer states; activations, the rollout's cache and what libraries take come on top.
"""

from collections.abc import Sequence

from reward.types import Placed

_ADAM_STATES = 2  # first and second moment, float32
_FLOAT32 = 4


def training_plan(
    *, policy: int, critic: int | None, initial_policy: bool, zero_stage: int, ranks: int, dtype_bytes: int
) -> list[Placed]:
    """Policy, critic and frozen initial policy under ZeRO stage `zero_stage` (0: none).

    Args:
        policy, critic: numbers of parameters; None where there is no critic. All are trained in full.
        initial_policy: whether a frozen copy of the policy is kept.
        dtype_bytes: bytes of a weight: 4 in float32; 2 in half precision, to which ZeRO adds float32 master weights.
    """

    def trained(name: str, parameters: int) -> Placed:
        master = _FLOAT32 if dtype_bytes < _FLOAT32 and zero_stage else 0
        states = _ADAM_STATES * _FLOAT32 + master
        shards = [ranks if zero_stage >= stage else 1 for stage in (3, 2, 1)]  # of weights, gradients, states
        parts = zip((dtype_bytes, dtype_bytes, states), shards, strict=True)
        return Placed(name, _where(zero_stage, ranks), sum(parameters * size // shard for size, shard in parts))

    plan = [trained("policy", policy)]
    if critic is not None:
        plan.append(trained("critic", critic))
    if initial_policy:
        shard = ranks if zero_stage == 3 else 1
        where = _where(3, ranks) if zero_stage == 3 else "replicated"
        plan.append(Placed("initial policy", f"{where}, frozen", policy * dtype_bytes // shard))
    return plan


def _where(zero_stage: int, ranks: int) -> str:
    what = {0: "replicated", 1: "ZeRO-1: states", 2: "ZeRO-2: states and gradients", 3: "ZeRO-3: all"}[zero_stage]
    return f"{what} sharded over {ranks} ranks" if zero_stage and ranks > 1 else what.partition(":")[0]


def render(plan: Sequence[Placed]) -> str:
    """The plan as lines of text, with the sum."""
    rows = [(item.model, item.where, _mebibytes(item.bytes_per_rank)) for item in plan]
    rows.append(("together", "on one rank, without activations", _mebibytes(sum(p.bytes_per_rank for p in plan))))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join(["memory plan", *lines])


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

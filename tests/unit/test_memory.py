"""The memory plan: weights, gradients and Adam's states worked by hand."""

import pytest

from reward.types import Placed
from rlhf.memory import render, training_plan

MILLION = 1_000_000


def plan(**changes):
    settings = {"policy": MILLION, "critic": None, "initial_policy": False, "zero_stage": 0, "ranks": 2}
    return training_plan(**{**settings, "dtype_bytes": 4, **changes})


@pytest.mark.parametrize(
    ("zero_stage", "dtype_bytes", "wanted"),
    [
        (0, 4, 16.0),  # weight 4, gradient 4, two moments 8
        (1, 4, 12.0),  # 4 + 4 + 8/2
        (2, 4, 10.0),  # 4 + 4/2 + 8/2
        (3, 4, 8.0),  # everything halved
        (3, 2, 8.0),  # bf16: (2 + 2 + 8 + 4 of master weights) / 2
        (0, 2, 12.0),  # 2 + 2 + 8
        (2, 2, 9.0),  # 2 + 2/2 + 12/2
    ],
)
def test_bytes_of_a_trained_parameter_on_one_of_two_ranks(zero_stage, dtype_bytes, wanted):
    (policy,) = plan(zero_stage=zero_stage, dtype_bytes=dtype_bytes)
    assert policy.bytes_per_rank == wanted * MILLION


def test_a_frozen_copy_is_weights_alone_and_sharded_only_by_zero_3():
    rows = {row.model: row for row in plan(initial_policy=True, critic=500_000, zero_stage=3)}
    assert rows["initial policy"].bytes_per_rank == 2 * MILLION
    assert rows["critic"].bytes_per_rank == 4 * MILLION
    assert rows["initial policy"].where == "ZeRO-3: all sharded over 2 ranks, frozen"
    rows = {row.model: row for row in plan(initial_policy=True, zero_stage=2)}
    assert rows["initial policy"].bytes_per_rank == 4 * MILLION
    assert rows["initial policy"].where == "replicated, frozen"
    assert [row.model for row in plan()] == ["policy"]


def test_the_plan_is_a_table_with_its_sum():
    lines = render([Placed("policy", "replicated", 3 * 2**20), Placed("judge", "sharded", 2**19)]).splitlines()
    assert lines[0] == "memory plan"
    assert [line.split() for line in lines[1:3]] == [
        ["policy", "replicated", "3.0", "MiB"],
        ["judge", "sharded", "0.5", "MiB"],
    ]
    assert lines[3].split()[0] == "together" and lines[3].endswith("3.5 MiB")
    assert len({len(line) for line in lines[1:]}) == 1, "columns are aligned"

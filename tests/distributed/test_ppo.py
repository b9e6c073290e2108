"""PPO on two real ranks over gloo under ZeRO-3."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.conftest import REPOSITORY, run_deepspeed
from tests.gram_toys import save_toy_model

SCRIPT = REPOSITORY / "tests" / "distributed" / "ppo_fixed_rollouts.py"


def fixed_run(tmp_path, policy, ranks):
    """(log entries of each rank, policy, critic) of three steps on the same rollouts."""
    out = tmp_path / f"ranks{ranks}"
    done = run_deepspeed([SCRIPT, policy, out], num_ranks=ranks)
    logs = {int(rank): json.loads(text) for rank, text in re.findall(r"RANK(\d) (\[.*\])", done.stdout)}
    policy = AutoModelForCausalLM.from_pretrained(out).state_dict()
    critic = AutoModelForTokenClassification.from_pretrained(out / "critic").state_dict()
    return logs, policy, critic


def test_two_ranks_under_zero3_take_the_steps_of_one(tmp_path):
    policy = save_toy_model(tmp_path / "policy")
    one_log, one_policy, one_critic = fixed_run(tmp_path, policy, 1)
    two_log, two_policy, two_critic = fixed_run(tmp_path, policy, 2)
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()

    assert set(two_log) == {0, 1}
    for mine, theirs, alone in zip(two_log[0], two_log[1], one_log[0], strict=True):
        assert mine == pytest.approx(theirs, nan_ok=True), "both ranks report the numbers of all ranks"
        # float32 sums in another order: the largest of these numbers is about 10, its rounding about 1e-6.
        assert mine == pytest.approx(alone, abs=1e-4, nan_ok=True)
    for name, weight in one_policy.items():
        torch.testing.assert_close(two_policy[name], weight, atol=1e-5, rtol=0, msg=name)
    for name, weight in one_critic.items():
        torch.testing.assert_close(two_critic[name], weight, atol=1e-5, rtol=0, msg=name)
    moved = max((one_policy[name] - before[name]).abs().max() for name in before)
    assert moved > 1e-3, "a hundred times the tolerance"
    assert one_critic["score.bias"].item() != 0.5

"""Reward flags: every bad one is refused by name before any weights load."""

import dataclasses

import pytest

from reward import config
from reward.backends import PairwiseReward
from reward.config import RewardArguments, build_reward, check_reward
from reward.encoding import JudgeConfig
from reward.errors import ContextTooShortError, LabelTokenError, SettingsError
from reward.judges.gram import DEFAULT_TOKEN_BUDGET
from reward.judges.wrappers import BothOrders
from reward.types import Group, as_prompt
from tests.support import byte_tokenizer, tiny_model

GROUPS = [Group(as_prompt("2+2?"), ("four", "five"), "four")]


@pytest.fixture
def weightless(tmp_path):
    """A judge's folder that lacks the weights: enough for every check, too little for loading."""
    tokenizer = byte_tokenizer()
    tiny_model("llama", len(tokenizer)).config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    JudgeConfig(prompt="compact").save(tmp_path)
    return tmp_path


@pytest.fixture
def folder(weightless):
    tiny_model("llama", len(byte_tokenizer())).save_pretrained(weightless)
    return weightless


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"--reward gramm is unknown: choose one of .*gram"):
        check_reward(RewardArguments(reward="gramm"))


def test_a_missing_reward_model_is_refused_by_name():
    with pytest.raises(SettingsError, match="--reward gram needs --reward_model"):
        check_reward(RewardArguments())


@pytest.mark.parametrize("dtype", ["fp8", "bf16", "Float32", "", "auto"])
def test_an_unknown_precision_is_refused_with_the_known_ones(dtype, weightless):
    with pytest.raises(SettingsError, match=f"--reward_dtype {dtype}: choose float32, bfloat16 or float16"):
        check_reward(RewardArguments(reward_model=str(weightless), reward_dtype=dtype))


def test_a_flag_that_the_backend_does_not_read_is_refused_by_name(monkeypatch):
    checked = []
    other = config._Backend(flags={"reward_model"}, check=checked.append, build=lambda _: None)
    monkeypatch.setitem(config.BACKENDS, "other", other)
    with pytest.raises(SettingsError, match="--reward_dtype is not read by --reward other, which knows --reward_model"):
        check_reward(RewardArguments(reward="other", reward_model="m", reward_dtype="float32"))
    assert checked == []
    check_reward(RewardArguments(reward="other", reward_model="m"))
    assert len(checked) == 1


def test_a_flag_set_to_false_or_zero_counts_as_given(monkeypatch):
    other = config._Backend(flags=set(), check=lambda _: None, build=lambda _: None)
    monkeypatch.setitem(config.BACKENDS, "other", other)
    for name, value in (("reward_trust_remote_code", False), ("reward_token_budget", 0)):
        with pytest.raises(SettingsError, match=f"--{name} is not read by"):
            check_reward(RewardArguments(reward="other", **{name: value}))


def test_reward_flags_are_unset_by_default_so_that_explicit_use_is_known():
    arguments = RewardArguments()
    for item in dataclasses.fields(arguments):
        assert getattr(arguments, item.name) is None or item.name == "reward"
        assert item.name.startswith("reward")
        assert item.metadata["help"]


def test_the_table_names_only_flags_that_exist():
    names = {item.name for item in dataclasses.fields(RewardArguments)}
    assert all(backend.flags <= names for backend in config.BACKENDS.values())


def test_checking_reads_no_weights(weightless):
    arguments = RewardArguments(reward_model=str(weightless))
    check_reward(arguments)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        build_reward(arguments)


def test_a_context_too_short_is_refused_before_the_weights(weightless):
    with pytest.raises(ContextTooShortError):
        check_reward(RewardArguments(reward_model=str(weightless), reward_max_length=30))


def test_labels_that_do_not_fit_are_refused_before_the_weights(weightless):
    JudgeConfig(prompt="compact", labels=("Yes, A", "No, B")).save(weightless)
    with pytest.raises(LabelTokenError):
        check_reward(RewardArguments(reward_model=str(weightless)))


def test_building_wires_both_orders_around_the_judge_with_the_flags(folder):
    backend = build_reward(
        RewardArguments(reward_model=str(folder), reward_max_length=99, reward_token_budget=33, reward_dtype="bfloat16")
    )
    assert isinstance(backend, PairwiseReward)
    assert isinstance(backend.judge, BothOrders)
    judge = backend.judge.judge
    assert (judge.encoder.max_length, judge.token_budget) == (99, 33)
    assert str(judge.model.dtype) == "torch.bfloat16"
    assert backend.name == "gram"


def test_defaults_build_a_judge_in_float32_that_scores(folder):
    backend = build_reward(RewardArguments(reward_model=str(folder)))
    assert backend.judge.judge.token_budget == DEFAULT_TOKEN_BUDGET
    four, five = backend.score(GROUPS)[0].scores
    assert four == pytest.approx(0.5, abs=1e-5)
    assert 0 < five < 1

"""TRL's rows as groups."""

import pytest

from reward.errors import SettingsError
from reward.trl_signature import groups_from_rows, require_whole_groups, response_text
from reward.types import Group, as_prompt


def test_neighbouring_rows_become_groups_with_their_reference():
    chat = [{"role": "user", "content": "b"}]
    completions = ["1", "2", [{"role": "assistant", "content": "3"}], [{"role": "assistant", "content": "4"}]]
    groups = groups_from_rows(["a", "a", chat, chat], completions, 2, ["x", "y"])
    assert groups == [Group(as_prompt("a"), ("1", "2"), "x"), Group(as_prompt("b"), ("3", "4"), "y")]


def test_rows_of_other_prompts_and_rests_are_refused():
    with pytest.raises(SettingsError, match="rows 2 to 3 of a group have different prompts"):
        groups_from_rows(["a", "a", "a", "b"], ["1", "2", "3", "4"], 2)
    with pytest.raises(SettingsError, match="3 rows do not divide into groups of 2"):
        groups_from_rows(["a", "a", "b"], ["1", "2", "3"], 2)


def test_an_exchange_with_tools_is_one_text():
    messages = [{"role": "assistant", "content": None}, {"role": "tool", "content": "4"}]
    assert response_text([*messages, {"role": "assistant", "content": "It is 4."}]) == (
        "assistant: \n\ntool: 4\n\nassistant: It is 4."
    )


def test_a_split_group_is_refused_with_the_numbers_and_the_way_out():
    require_whole_groups(per_device_batch_size=4, steps_per_generation=2, num_generations=8, world_size=2)
    with pytest.raises(SettingsError, match=r"= 4 responses .*\(8\) does not divide.*--per_device_train_batch_size 8"):
        require_whole_groups(per_device_batch_size=4, steps_per_generation=1, num_generations=8, world_size=2)

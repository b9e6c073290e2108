"""Questions of all ranks dealt out: groups whole where that is possible, lengths even."""

import itertools
import random

import pytest

from reward.placement import dealt
from reward.types import Pair, as_prompt


def group(topic: str, size: int, words: int = 5) -> list[Pair]:
    texts = [f"{topic} {i} " + "so " * words for i in range(size)]
    return [Pair(as_prompt(topic), *both) for both in itertools.permutations(texts, 2)]


def length(pair: Pair) -> int:
    return len(pair.prompt[0].content + pair.response_a + pair.response_b)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_question_goes_to_one_rank_and_lengths_are_even(ranks):
    rng = random.Random(0)
    questions = [pair for i in range(9) for pair in group(f"topic {i}", rng.randrange(2, 6), rng.randrange(1, 40))]
    rng.shuffle(questions)
    hands = dealt(questions, ranks)
    assert len(hands) == ranks
    assert sorted(map(repr, itertools.chain(*hands))) == sorted(map(repr, questions))
    longest, share = max(map(length, questions)) + 1, sum(length(pair) + 1 for pair in questions) / ranks
    assert all(abs(sum(length(pair) + 1 for pair in hand) - share) <= longest for hand in hands)


def test_groups_stay_whole():
    questions = [pair for i in range(4) for pair in group(f"topic {i}", 4)]
    random.Random(1).shuffle(questions)
    hands = dealt(questions, 2)
    assert [len({pair.prompt for pair in hand}) for hand in hands] == [2, 2]
    assert not {pair.prompt for pair in hands[0]} & {pair.prompt for pair in hands[1]}


def test_a_group_that_is_torn_keeps_pairs_with_one_first_response_together():
    hands = dealt(random.Random(2).sample(pairs := group("rain", 5), len(pairs)), 2)
    firsts = [{pair.response_a for pair in hand} for hand in hands]
    assert len(firsts[0] & firsts[1]) <= 1 and [len(hand) for hand in hands] == [10, 10]


def test_fewer_questions_than_ranks_leave_ranks_without():
    assert sorted(map(len, dealt(group("rain", 2), 4))) == [0, 0, 1, 1]
    assert dealt([], 3) == [[], [], []]
    assert dealt([Pair(as_prompt(""), "", "")], 1) == [[Pair(as_prompt(""), "", "")]]


def test_every_rank_deals_alike():
    questions = [pair for i in range(5) for pair in group(f"topic {i}", 3, i)]
    assert dealt(questions, 3) == dealt(list(questions), 3)

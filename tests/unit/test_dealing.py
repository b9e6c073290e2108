"""Questions of all ranks dealt out: groups whole where that is possible, lengths even."""

import itertools
import random

import pytest

from reward.placement import dealt
from reward.types import Pair, as_prompt


def group(topic: str, size: int, words: int = 5) -> list[Pair]:
    texts = [f"{topic} {i} " + "so " * words for i in range(size)]
    return [Pair(as_prompt(topic), *both) for both in itertools.permutations(texts, 2)]


def read(hand: list[Pair]) -> int:
    """Characters, each prompt once and each first response of a prompt once."""
    prompts, firsts = {pair.prompt for pair in hand}, {(pair.prompt, pair.response_a) for pair in hand}
    texts = [prompt[0].content for prompt in prompts] + [first for _, first in firsts]
    return sum(map(len, texts)) + sum(len(pair.response_b) for pair in hand)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_question_goes_to_one_rank_and_the_work_is_even(ranks):
    rng = random.Random(0)
    topics = [f"topic {i}, " + "and " * rng.randrange(90) for i in range(9)]
    questions = [pair for topic in topics for pair in group(topic, rng.randrange(2, 6), rng.randrange(1, 40))]
    rng.shuffle(questions)
    hands = dealt(questions, ranks)
    assert len(hands) == ranks
    assert sorted(map(repr, itertools.chain(*hands))) == sorted(map(repr, questions))
    work, longest = [read(hand) for hand in hands], max(read([pair]) for pair in questions)
    assert max(work) - min(work) <= 2 * longest
    assert ranks == 1 or max(work) < 0.75 * read(questions)


def test_groups_stay_whole():
    questions = [pair for i in range(4) for pair in group(f"topic {i}", 4)]
    random.Random(1).shuffle(questions)
    hands = dealt(questions, 2)
    assert [len({pair.prompt for pair in hand}) for hand in hands] == [2, 2]
    assert not {pair.prompt for pair in hands[0]} & {pair.prompt for pair in hands[1]}


def test_a_group_that_is_torn_keeps_pairs_with_one_first_response_together():
    hands = dealt(random.Random(2).sample(pairs := group("rain", 5), len(pairs)), 2)
    firsts = [{pair.response_a for pair in hand} for hand in hands]
    assert len(firsts[0] & firsts[1]) <= 1
    assert [len(hand) for hand in hands] == [9, 11], "the first reads the prompt, too"


def test_fewer_questions_than_ranks_leave_ranks_without():
    assert sorted(map(len, dealt(group("rain", 2), 4))) == [0, 0, 1, 1]
    assert dealt([], 3) == [[], [], []]
    assert dealt([Pair(as_prompt(""), "", "")], 1) == [[Pair(as_prompt(""), "", "")]]


def test_every_rank_deals_alike():
    questions = [pair for i in range(5) for pair in group(f"topic {i}", 3, i)]
    assert dealt(questions, 3) == dealt(list(questions), 3)

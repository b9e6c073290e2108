"""From flags to a reward backend: one table, one builder.

Legend of a table entry: which flags the backend reads, how its settings are checked before any weights load, which
models it will load and where, how it is built.
"""

import os
from collections.abc import Callable, Set
from dataclasses import dataclass, field, fields

import torch
from torch import distributed
from transformers import AutoConfig

from reward import aggregation as aggregations
from reward.backends import PairwiseReward
from reward.cache import Cached, JudgmentStore
from reward.errors import SettingsError
from reward.judges.gram import DEFAULT_TOKEN_BUDGET, GramJudge, adapter_base, load_encoder
from reward.judges.wrappers import BothOrders
from reward.pairing import PAIRINGS, Circular, Pairing
from reward.placement import PLACEMENTS, ShardedJudge, TogetherReward, parameter_count, require_ranks
from reward.types import Judge, Placed, RewardBackend

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class RewardArguments:
    """Which reward, and how it judges. Unset flags are None, so that a flag given in vain can be refused by name."""

    reward: str = field(default="gram", metadata={"help": "Reward backend: gram."})
    reward_model: str | None = field(default=None, metadata={"help": "Folder or hub name of the judge."})
    reward_model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the hub."})
    reward_pairing: str | None = field(
        default=None,
        metadata={
            "help": "Who meets whom: reference (each response one reference; PPO's default), or the responses of a "
            "prompt each other: round_robin (GRPO's default), circular, swiss, knockout."
        },
    )
    reward_opponents: int | None = field(
        default=None, metadata={"help": "Opponents of each response under --reward_pairing circular; even, default 4."}
    )
    reward_aggregation: str | None = field(
        default=None,
        metadata={
            "help": "What results are worth: mean (win probability; default of reference and round_robin), "
            "bradley_terry (default of the others), copeland."
        },
    )
    reward_scale: str | None = field(
        default=None, metadata={"help": "probability (default), margin (2p - 1) or logit (clipped)."}
    )
    reward_reference: str | None = field(
        default=None,
        metadata={
            "help": "What a response is measured against under --reward_pairing reference: greedy (the current "
            "policy's greedy response, the method as published; default), initial (the initial policy's), dataset "
            "(the column 'reference')."
        },
    )
    reward_cache: str | None = field(
        default=None, metadata={"help": "Folder that keeps judgments on disk, for this run and later ones."}
    )
    reward_placement: str | None = field(
        default=None,
        metadata={
            "help": "replicated (a whole judge on every rank; default) or zero3 (one, sharded over the ranks: a share "
            "of the memory, a collective for every layer)."
        },
    )
    reward_max_length: int | None = field(
        default=None, metadata={"help": "Longest judge input in tokens; default: gram.json's, or the whole context."}
    )
    reward_token_budget: int | None = field(
        default=None, metadata={"help": f"Tokens of a judging batch, with padding; default {DEFAULT_TOKEN_BUDGET}."}
    )
    reward_dtype: str | None = field(
        default=None, metadata={"help": "Precision of the judge; default bfloat16 on a GPU, float32 elsewhere."}
    )
    reward_trust_remote_code: bool | None = field(
        default=None, metadata={"help": "Run model code that the judge's repository brings."}
    )


@dataclass(frozen=True)
class Reward:
    """What the flags describe.

    backend: scores groups for training. versus: scores the same responses against one fixed response a group, for
    win rates. The two share their weights.
    """

    backend: RewardBackend
    versus: RewardBackend


@dataclass(frozen=True)
class _Backend:
    flags: Set[str]
    check: Callable[[RewardArguments, str, int], str | None]
    plan: Callable[[RewardArguments], tuple[Placed, ...]]
    build: Callable[[RewardArguments, str], Reward]


def check_reward(
    arguments: RewardArguments, *, default_pairing: str = "reference", num_generations: int = 1
) -> str | None:
    """Refuses bad reward flags before any weights load.

    Args:
        default_pairing: the recipe's, where no flag says one.
        num_generations: responses a prompt, the smaller of training and evaluation.

    Returns:
        What a response is measured against: `greedy`, `initial` or `dataset`; None where no reference is needed.

    Raises:
        SettingsError: unknown backend, a flag it does not read, a flag it needs, flags that contradict each other.
        PromptError and its kinds: the judge's tokenizer does not fit its prompt.
    """
    if arguments.reward not in BACKENDS:
        raise SettingsError(f"--reward {arguments.reward} is unknown: choose one of {', '.join(sorted(BACKENDS))}")
    backend = BACKENDS[arguments.reward]
    for item in fields(arguments):
        given = getattr(arguments, item.name) is not None
        if item.name != "reward" and given and item.name not in backend.flags:
            known = ", ".join(f"--{name}" for name in sorted(backend.flags))
            raise SettingsError(f"--{item.name} is not read by --reward {arguments.reward}, which knows {known}")
    return backend.check(arguments, default_pairing, num_generations)


def plan_reward(arguments: RewardArguments) -> tuple[Placed, ...]:
    """The models that `build_reward` will load on this rank, for the memory plan; no weights are read for it."""
    return BACKENDS[arguments.reward].plan(arguments)


def build_reward(arguments: RewardArguments, *, default_pairing: str = "reference") -> Reward:
    """What the flags describe, its weights loaded. Call `check_reward` first."""
    return BACKENDS[arguments.reward].build(arguments, default_pairing)


# --- gram -----------------------------------------------------------------------------------------------------------


def _check_gram(arguments: RewardArguments, default_pairing: str, num_generations: int) -> str | None:
    if arguments.reward_model is None:
        raise SettingsError("--reward gram needs --reward_model: the folder or hub name of a judge")
    for flag, known in (
        ("reward_dtype", DTYPES),
        ("reward_pairing", tuple(PAIRINGS)),
        ("reward_aggregation", tuple(aggregations.AGGREGATIONS)),
        ("reward_scale", tuple(aggregations.SCALES)),
        ("reward_placement", PLACEMENTS),
    ):
        if (value := getattr(arguments, flag)) is not None and value not in known:
            raise SettingsError(f"--{flag} {value}: choose {', '.join(known[:-1])} or {known[-1]}")
    pairing, aggregation, _ = _comparison(arguments, default_pairing)
    aggregations.check(pairing, aggregation)
    if not pairing.uses_reference and num_generations < 2:
        raise SettingsError(
            f"--reward_pairing {pairing.name} lets the responses of one prompt meet each other, and there is "
            f"{num_generations} of them: raise --num_generations (and --num_generations_eval), or choose "
            "--reward_pairing reference"
        )
    if not pairing.uses_reference and arguments.reward_reference is not None:
        raise SettingsError(
            f"--reward_reference {arguments.reward_reference} is not read by --reward_pairing {pairing.name}, under "
            "which responses meet each other: leave it, or choose --reward_pairing reference"
        )
    if arguments.reward_placement == "zero3":
        require_ranks()
    load_encoder(
        arguments.reward_model,
        revision=arguments.reward_model_revision,
        max_length=arguments.reward_max_length,
        trust_remote_code=bool(arguments.reward_trust_remote_code),
    )
    return (arguments.reward_reference or "greedy") if pairing.uses_reference else None


def _comparison(arguments: RewardArguments, default_pairing: str) -> tuple[Pairing, str, str]:
    """Pairing, aggregation and scale, with defaults for what the flags leave open."""
    name = arguments.reward_pairing or default_pairing
    if arguments.reward_opponents is not None and name != Circular.name:
        raise SettingsError(
            f"--reward_opponents {arguments.reward_opponents} is not read by --reward_pairing {name}: only circular "
            "has a number of opponents to choose"
        )
    pairing = PAIRINGS[name]() if arguments.reward_opponents is None else Circular(arguments.reward_opponents)
    aggregation = arguments.reward_aggregation or ("bradley_terry" if pairing.order_dependent else "mean")
    return pairing, aggregation, arguments.reward_scale or "probability"


def _build_gram(arguments: RewardArguments, default_pairing: str) -> Reward:
    sharded = arguments.reward_placement == "zero3"
    gram = GramJudge.from_pretrained(
        arguments.reward_model,
        revision=arguments.reward_model_revision,
        dtype=arguments.reward_dtype,
        max_length=arguments.reward_max_length,
        token_budget=arguments.reward_token_budget or DEFAULT_TOKEN_BUDGET,
        trust_remote_code=bool(arguments.reward_trust_remote_code),
        sharded=sharded,
    )
    rank = int(os.environ.get("RANK", "0"))
    store = None if arguments.reward_cache is None else JudgmentStore(arguments.reward_cache, writer=rank)
    spread = ShardedJudge(gram) if sharded else gram
    judge: Judge = BothOrders(Cached(spread, store))
    pairing, aggregation, scale = _comparison(arguments, default_pairing)
    backend: RewardBackend = PairwiseReward(judge, pairing, aggregation, scale)
    versus: RewardBackend = PairwiseReward(judge)
    if sharded:
        backend, versus = TogetherReward(backend, spread), TogetherReward(versus, spread)
    return Reward(backend, versus)


def _plan_gram(arguments: RewardArguments) -> tuple[Placed, ...]:
    path, revision = arguments.reward_model, arguments.reward_model_revision
    base = adapter_base(path, revision)
    trust = bool(arguments.reward_trust_remote_code)
    model_config = AutoConfig.from_pretrained(
        base or path, revision=None if base else revision, trust_remote_code=trust
    )
    dtype = arguments.reward_dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    size = parameter_count(model_config, trust) * getattr(torch, dtype).itemsize
    if arguments.reward_placement == "zero3":
        ranks = distributed.get_world_size()
        return (Placed("judge", f"sharded over {ranks} ranks ({dtype})", -(-size // ranks)),)
    return (Placed("judge", f"replicated ({dtype})", size),)


BACKENDS = {
    "gram": _Backend(
        flags={item.name for item in fields(RewardArguments)} - {"reward"},
        check=_check_gram,
        plan=_plan_gram,
        build=_build_gram,
    )
}

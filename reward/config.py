"""From flags to a reward backend: one table, one builder.

Legend of a table entry: which flags the backend reads, how its settings are checked before any weights load, how it
is built.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, field, fields

from reward.backends import PairwiseReward
from reward.errors import SettingsError
from reward.judges.gram import DEFAULT_TOKEN_BUDGET, GramJudge, load_encoder
from reward.judges.wrappers import BothOrders
from reward.types import RewardBackend


@dataclass
class RewardArguments:
    """Which reward, and how it judges. Unset flags are None, so that a flag given in vain can be refused by name."""

    reward: str = field(default="gram", metadata={"help": "Reward backend: gram."})
    reward_model: str | None = field(default=None, metadata={"help": "Folder or hub name of the judge."})
    reward_model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the hub."})
    reward_reference: str | None = field(
        default=None,
        metadata={
            "help": "What a response is measured against: greedy (the current policy's greedy response, the method as "
            "published; default), initial (the initial policy's), dataset (the column 'reference')."
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
class _Backend:
    flags: Set[str]
    check: Callable[[RewardArguments], None]
    build: Callable[[RewardArguments], RewardBackend]


def check_reward(arguments: RewardArguments) -> None:
    """Refuses bad reward flags before any weights load.

    Raises:
        SettingsError: unknown backend, a flag it does not read, a flag it needs.
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
    backend.check(arguments)


def build_reward(arguments: RewardArguments) -> RewardBackend:
    """The backend that the flags describe, its weights loaded."""
    check_reward(arguments)
    return BACKENDS[arguments.reward].build(arguments)


def _check_gram(arguments: RewardArguments) -> None:
    if arguments.reward_model is None:
        raise SettingsError("--reward gram needs --reward_model: the folder or hub name of a judge")
    if arguments.reward_dtype not in (None, "float32", "bfloat16", "float16"):
        raise SettingsError(f"--reward_dtype {arguments.reward_dtype}: choose float32, bfloat16 or float16")
    load_encoder(
        arguments.reward_model,
        revision=arguments.reward_model_revision,
        max_length=arguments.reward_max_length,
        trust_remote_code=bool(arguments.reward_trust_remote_code),
    )


def _build_gram(arguments: RewardArguments) -> RewardBackend:
    judge = GramJudge.from_pretrained(
        arguments.reward_model,
        revision=arguments.reward_model_revision,
        dtype=arguments.reward_dtype,
        max_length=arguments.reward_max_length,
        token_budget=arguments.reward_token_budget or DEFAULT_TOKEN_BUDGET,
        trust_remote_code=bool(arguments.reward_trust_remote_code),
    )
    return PairwiseReward(BothOrders(judge), name="gram")


BACKENDS = {
    "gram": _Backend(
        flags={item.name for item in fields(RewardArguments)} - {"reward"}, check=_check_gram, build=_build_gram
    )
}

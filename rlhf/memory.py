"""The memory plan that a recipe prints before it loads anything: which model is where, and its bytes on one rank.

Models first (weights, gradients, optimizer states), then what the phases of a step take on top of them for a while:
only the largest of these counts, because one phase ends before the next begins. What libraries, buckets of
collectives and the allocator's gaps take comes on top of both. docs/scaling.md has the arithmetic in words.
"""

import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from reward.types import Placed

_FLOAT32 = 4
_ADAM_STATES = 2  # first and second moment
_LIVE = 10**9  # stage3_max_live_parameters and sub_group_size of ds_configs/
_TILE = (4096, 32_768)  # tokens and vocabulary of a tile in TRL's fused output embedding, on a GPU; else smaller


@dataclass(frozen=True)
class Setup:
    """How models are trained.

    zero_stage: 0 is none. weight_bytes: of a weight in training, 2 in half precision; DeepSpeed makes weights so under
    --bf16. offload: ZeRO-3 keeps weights and states of trained models in the host's memory.
    autocast: float32 weights are cast to half precision inside a forward (--bf16 without DeepSpeed).
    """

    zero_stage: int = 0
    ranks: int = 1
    weight_bytes: int = 4
    offload: bool = False
    autocast: bool = False

    @property
    def compute_bytes(self) -> int:
        """Of an activation."""
        return 2 if self.autocast else self.weight_bytes


@dataclass(frozen=True)
class Shape:
    """What of a transformer decides its memory; widths in numbers of elements."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    queries: int  # heads x width of a head
    keys: int  # heads of keys x width of a head; the values are as wide
    vocabulary: int


def shape_of(config: PreTrainedConfig, parameters: int) -> Shape:
    """The shape of a decoder; architectures that name no width of their own have the usual one."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        parameters=parameters,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        queries=heads * width,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * width,
        vocabulary=text.vocab_size,
    )


# --- models -----------------------------------------------------------------------------------------------------------


def trained_bytes(parameters: int, setup: Setup) -> tuple[int, int]:
    """(device, host) bytes on one rank of a model trained in full by AdamW.

    ZeRO (arXiv 1910.02054) adds a float32 copy of the weights, to float32 weights too, and shards from stage 1 the
    states with that copy, from 2 the gradients, from 3 the weights. Without it the moments have the precision of the
    weights, and DistributedDataParallel's buckets are a second copy of the gradients.
    """
    weight, ranks = setup.weight_bytes, setup.ranks
    if not setup.zero_stage:
        return parameters * weight * (2 + _ADAM_STATES + (ranks > 1)), 0
    if setup.offload:  # the gradients arrive in the host's memory in float32
        return 0, parameters * (weight + _FLOAT32 * (2 + _ADAM_STATES)) // ranks
    sizes = (weight, weight, _FLOAT32 * (1 + _ADAM_STATES))  # weights, gradients, states
    shards = [ranks if setup.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return sum(parameters * size // shard for size, shard in zip(sizes, shards, strict=True)), 0


def frozen_bytes(parameters: int, setup: Setup) -> tuple[int, int]:
    """(device, host) bytes on one rank of the initial policy, which is sharded where the policy is."""
    size = parameters * setup.weight_bytes // (setup.ranks if setup.zero_stage == 3 else 1)
    return (0, size) if setup.offload else (size, 0)


@dataclass(frozen=True)
class Adapter:
    """LoRA: what is trained beside weights that stand still. parameters: of one adapter. bits: of a quantised weight
    below it (QLoRA), None where they are whole; embeddings are never quantised, `embedding` parameters.
    """

    parameters: int
    bits: int | None = None
    embedding: int = 0

    def bytes(self, parameters: int, setup: Setup) -> tuple[int, int]:
        """(device, host) bytes on one rank of a model of `parameters` with this adapter."""
        below = frozen_bytes(parameters, setup)
        if self.bits is not None:  # a float32 scale for each 64 weights comes on top; no rank has a part alone
            packed = (parameters - self.embedding) * (self.bits / 8 + _FLOAT32 / 64)
            below = (int(packed) + self.embedding * setup.weight_bytes, 0)
        device, host = trained_bytes(self.parameters, setup)
        return below[0] + device, below[1] + host


def training_plan(
    *,
    policy: int,
    critic: int | None,
    initial_policy: bool,
    setup: Setup,
    adapter: Adapter | None = None,
    critic_full: bool = False,
) -> list[Placed]:
    """Policy, critic and frozen initial policy.

    Args:
        policy, critic: numbers of parameters; None where there is no critic.
        initial_policy: whether a frozen copy of the policy is kept.
        adapter: trained in place of all weights, of the policy and (unless `critic_full`) of the critic.
    """

    def placed(name: str, parameters: int, small: Adapter | None) -> Placed:
        if small is None:
            return Placed(name, _where(setup), *trained_bytes(parameters, setup))
        below = "whole" if small.bits is None else f"{small.bits}-bit"
        return Placed(name, f"{_where(setup)}, LoRA on {below} weights", *small.bytes(parameters, setup))

    plan = [placed("policy", policy, adapter)]
    if critic is not None:
        plan.append(placed("critic", critic, None if critic_full else adapter))
    if initial_policy:
        where = _where(setup) if setup.zero_stage == 3 else "replicated"
        plan.append(Placed("initial policy", f"{where}, frozen", *frozen_bytes(policy, setup)))
    return plan


def _where(setup: Setup) -> str:
    stages = {0: "replicated", 1: "ZeRO-1: states", 2: "ZeRO-2: states and gradients", 3: "ZeRO-3: all"}
    what = stages[setup.zero_stage]
    sharded = setup.zero_stage and setup.ranks > 1
    where = f"{what} sharded over {setup.ranks} ranks" if sharded else what.partition(":")[0]
    return f"{where}, in the host's memory" if setup.offload else where


# --- phases -----------------------------------------------------------------------------------------------------------


def activation_bytes(shape: Shape, tokens: int, *, size: int, checkpointing: bool) -> int:
    """What a forward of `tokens` keeps for its backward; `size` bytes an element.

    A layer keeps, an element each: of its two norms the input, the normalised input and the output (6 hidden); the
    queries and the attention's output (2 queries) and keys and values, spread over the query heads (2 queries); of the
    gated feed-forward gate, its activation, up and their product (4 intermediate). With checkpointing a layer keeps
    its input, and one layer at a time all of it. (The count of Korthikanti et al., arXiv 2205.05198, section 4, for a
    Llama-like layer and an attention that keeps no matrix of scores.)
    """
    layer = 6 * shape.hidden + 4 * shape.queries + 4 * shape.intermediate
    kept = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    return tokens * size * kept


def cache_bytes(shape: Shape, tokens: int, *, size: int) -> int:
    """Keys and values of `tokens`, in every layer."""
    return 2 * shape.layers * shape.keys * tokens * size


def phases(
    policy: Shape,
    setup: Setup,
    *,
    rollout: int,
    minibatch: int,
    tokens: int,
    critic: bool,
    checkpointing: bool,
    decodes_here: bool = True,
    gathers: bool = True,
) -> list[Placed]:
    """What each phase of a step takes on one rank on top of the models, estimated.

    Args:
        rollout: rows that this rank decodes at once, responses and the greedy references beside them. minibatch:
            responses on this rank. tokens: of the longest prompt with the longest response.
        decodes_here: whether this process decodes; no under vLLM. gathers: whether ZeRO-3 makes the policy whole on
            every rank to decode (`--ds3_gather_for_generation`).
    """
    size, count = setup.compute_bytes, policy.parameters
    sharded = (setup.zero_stage == 3 and setup.ranks > 1) or setup.offload
    whole = count * setup.weight_bytes
    live = min(count, _LIVE) * setup.weight_bytes if sharded else 2 * count if setup.autocast else 0
    plan = []
    if decodes_here:
        logits = rollout * policy.vocabulary * (size + 2 * _FLOAT32)  # of one position, in float32, its probabilities
        held = cache_bytes(policy, rollout * tokens, size=size) + logits
        gathered = sharded and gathers
        what = f"key-value cache of {rollout} x {tokens} tokens" + (", the policy whole" if gathered else "")
        plan.append(Placed("rollout", what, held + (whole if gathered else live)))
    read = minibatch * tokens
    kept = activation_bytes(policy, read, size=size, checkpointing=checkpointing)
    tile = min(read, _TILE[0]) * _TILE[1] * size
    head = tile + _FLOAT32 * policy.hidden * (policy.vocabulary + read)  # gradients of output embedding and its input
    what = f"activations of {minibatch} x {tokens} tokens"
    plan.append(Placed("policy's update", f"{what}, logits", kept + head + live))
    if critic:
        plan.append(Placed("critic's update", what, kept + live))
    if setup.zero_stage and not setup.offload:
        held = min(count // setup.ranks, _LIVE if setup.zero_stage == 3 else count) * _FLOAT32
        plan.append(Placed("optimizer step", "gradients in float32", held))
    return plan


# --- in words ---------------------------------------------------------------------------------------------------------


def peak(models: Sequence[Placed], on_top: Sequence[Placed]) -> int:
    """Bytes of all models and of the largest phase, on one rank."""
    return sum(item.bytes_per_rank for item in models) + max((item.bytes_per_rank for item in on_top), default=0)


def render(models: Sequence[Placed], on_top: Sequence[Placed] = ()) -> str:
    """The plan as lines of text, with the sum of the models and the peak."""
    together = ("together", "on one rank", _mebibytes(sum(item.bytes_per_rank for item in models)))
    rows = [*map(_row, models), together]
    if on_top:
        rows += [(name, f"{what} (estimate)", size) for name, what, size in map(_row, on_top)]
        rows.append(("peak", "together and the largest estimate", _mebibytes(peak(models, on_top))))
    if host := sum(item.host_bytes for item in models):
        rows.append(("host", "on one rank, offloaded", _mebibytes(host)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join(["memory plan", *lines])


def _row(item: Placed) -> tuple[str, str, str]:
    return item.model, item.where, _mebibytes(item.bytes_per_rank)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def peak_bytes() -> int:
    """The most memory this process has had at once: on a GPU what the allocator gave out, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():  # no Linux; macOS counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux ru_maxrss begins with the size of the process that started this one.
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE).group(1)) * 1024

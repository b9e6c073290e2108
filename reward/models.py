"""What everything that reads with a frozen local model shares: its fingerprint, and batches under a token budget."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward.placement import gathered

# Tokens of a judging batch. A GPU wants many at once; a CPU is busy with few, and more of them leave its caches: 2,048
# judge a fifth more pairs a second than 16,384 in the small world (docs/benchmarks.md).
DEFAULT_TOKEN_BUDGET = {"cpu": 2_048, "gpu": 16_384}
_Key = TypeVar("_Key")
_NO_PART_OF_AN_ANSWER = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


def default_token_budget(device: torch.device) -> int:
    """The entry of `DEFAULT_TOKEN_BUDGET` for this kind of device; every accelerator counts as a GPU."""
    return DEFAULT_TOKEN_BUDGET["cpu" if device.type == "cpu" else "gpu"]


def batches_by_length(lengths: Mapping[_Key, int], token_budget: int) -> Iterator[list[_Key]]:
    """The keys of `lengths` (tokens of an input), longest first, at most `token_budget` tokens a batch with padding."""
    order = sorted(lengths, key=lambda key: -lengths[key])
    while order:
        size = max(1, token_budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def inner_model(model: nn.Module) -> PreTrainedModel:
    """Below an engine, DDP and PEFT."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> str:
    """A digest of all that decides an answer: every byte of the weights, architecture, vocabulary, chat template and
    `settings`. Read once, at loading.
    """
    digest = hashlib.sha256()
    inner = inner_model(model)
    for name, weight in inner.state_dict(keep_vars=True).items():
        with gathered(weight) if inner is not model else nullcontext():
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(weight.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy())
    architecture = inner.config.to_diff_dict()
    for name in _NO_PART_OF_AN_ANSWER:
        architecture.pop(name, None)
    digest.update(json.dumps(architecture, sort_keys=True, default=str).encode())
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    settings = {**settings, "chat_template": tokenizer.chat_template, "vocabulary": vocabulary}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()

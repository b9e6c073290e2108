"""How a rollout is sampled: each prompt is read once, and its greedy reference is written beside its samples.

TRL's trainer decodes a row a response. Rows of a prompt repeat its reading G times, and a second decoding for the
greedy references repeats every step of the first. Here both are one `generate`.

Legend: B rows, P prompt tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, LogitsProcessor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from trl import GRPOTrainer


def samples_here(trainer: GRPOTrainer) -> bool:
    """Whether the rollout of `trainer` is one plain `generate`, in which rows can be added.

    Not vLLM or continuous batching, which know no rows; not with tools, which call again for what follows a result; not
    with settings of their own, which could bend the arg max.
    """
    args = trainer.args
    elsewhere = args.use_vllm or args.use_transformers_continuous_batching or trainer.tools
    return not (elsewhere or args.generation_kwargs or args.cache_implementation or args.repetition_penalty != 1.0)


@contextmanager
def together(model: GenerationMixin, samples: int, share: bool) -> Iterator[None]:
    """While active, `model.generate` writes the rows from number `samples` on greedily, and with `share` reads rows
    that are equal once.
    """
    generate = model.generate

    def generate_together(input_ids: Tensor, attention_mask: Tensor, **settings) -> Tensor:
        if share and input_ids.size(1) > 1 and _keeps_everything(model):
            settings["past_key_values"] = _read_once(model, input_ids, attention_mask)
        return generate(
            input_ids=input_ids, attention_mask=attention_mask, logits_processor=[_GreedyFrom(samples)], **settings
        )

    model.generate = generate_together
    try:
        yield
    finally:
        del model.generate


class _GreedyFrom(LogitsProcessor):
    """Leaves the rows from number `first` on their most likely token alone, which sampling must then take."""

    def __init__(self, first: int):
        self.first = first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, V)
        rows = scores[self.first :]
        scores[self.first :] = torch.full_like(rows, -torch.inf).scatter_(1, rows.argmax(1, keepdim=True), 0.0)
        return scores


def _keeps_everything(model: GenerationMixin) -> bool:
    """Whether what every layer keeps of the past is keys and values a row."""
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _read_once(model: GenerationMixin, ids: Tensor, mask: Tensor) -> DynamicCache:
    """Keys and values of all tokens (B, P) but the last, where generation goes on; equal rows are read as one."""
    rows, row_of = torch.cat([mask, ids], dim=1).unique(dim=0, return_inverse=True)
    mask, ids = rows.chunk(2, dim=1)
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=(mask[:, :-1].cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(row_of)
    return cache

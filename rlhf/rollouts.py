"""How a rollout is sampled: each prompt is read once, and its greedy reference is written beside its samples.

TRL's trainer decodes a row a response. Rows of a prompt repeat its reading G times, and a second decoding for the
greedy references repeats every step of the first. Here both are one `generate`, for best-of-n too.

Legend: B rows, P prompt tokens, T new tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from trl import GRPOTrainer

from reward.draws import inverse_cdf, leave_only, warpers
from reward.errors import NonFiniteLossError
from rlhf.guards import refuse_images


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
    """While active, `model.generate` is `decode`.

    Raises:
        SettingsError: it is given images, which no reward here reads.
    """

    def generate(input_ids: Tensor, attention_mask: Tensor, generation_config: GenerationConfig, **images) -> Tensor:
        refuse_images(images)
        return decode(model, input_ids, attention_mask, generation_config, samples=samples, share=share)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate


def decode(
    model: GenerationMixin, ids: Tensor, mask: Tensor, settings: GenerationConfig, *, samples: int, share: bool = True
) -> Tensor:
    """Prompts (B, P), padded on the left, with what `model` answers: (B, P + T).

    Args:
        settings: temperature, top_k, top_p and min_p of the samples; limits and special tokens as transformers reads
            them.
        samples: the rows that are drawn, the first; the others are greedy.
        share: whether rows that are equal are read once.

    Raises:
        NonFiniteLossError: a logit is NaN or infinite.
    """
    past = {"past_key_values": _read_once(model, ids, mask)} if share and _can_share(model, ids) else {}
    greedy = copy(settings)
    greedy.update(do_sample=False, temperature=1.0, top_k=None, top_p=None, min_p=None)
    return type(model).generate(
        model,
        input_ids=ids,
        attention_mask=mask,
        generation_config=greedy,
        logits_processor=[_Draw(samples, settings)],
        **past,
    )


class _Draw(LogitsProcessor):
    """Leaves each of the first `samples` rows one token, drawn; the others have their most likely one, as they are.

    transformers' own sampling (`torch.multinomial`) draws a number for every token of the vocabulary; here a row takes
    one (docs/benchmarks.md).
    """

    def __init__(self, samples: int, settings: GenerationConfig):
        self.samples = samples
        self.warp = warpers(settings.temperature, settings.top_k, settings.top_p, settings.min_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, V)
        largest = scores.amax(-1)
        if not largest.isfinite().all():
            row = int(largest.isfinite().logical_not().nonzero()[0])
            raise NonFiniteLossError(
                f"the largest logit of the policy's response {row} is {largest[row].item()}, so no token can be drawn: "
                "go back to an earlier checkpoint, in training with a lower --learning_rate"
            )
        drawn = self.warp(input_ids[: self.samples], scores[: self.samples])
        uniforms = torch.rand(len(drawn), dtype=torch.float64, device=drawn.device)
        leave_only(inverse_cdf(drawn, uniforms), scores[: self.samples])
        return scores


def _can_share(model: GenerationMixin, ids: Tensor) -> bool:
    """Whether what every layer keeps of the past is keys and values a row, and there is a past."""
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return ids.size(1) > 1 and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


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

"""Drawing tokens: the judges' and the policy's.

Legend: R rows, V vocabulary.
"""

import torch
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_AT_ONCE = 2**21  # logits of a piece in float64, 16 MiB: 64 rows of 151,936 at once took 2.3 times as long


def warpers(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float | None = None
) -> LogitsProcessorList:
    """transformers' changes to logits (R, V) before a token is drawn, in its order; temperature above 0."""
    wanted = [] if temperature == 1 else [TemperatureLogitsWarper(float(temperature))]
    wanted += [TopKLogitsWarper(top_k)] if top_k else []
    wanted += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    wanted += [] if min_p is None else [MinPLogitsWarper(min_p)]
    return LogitsProcessorList(wanted)


def inverse_cdf(scores: Tensor, uniforms: Tensor) -> Tensor:
    """The token (R,) of each row of logits (R, V) at which the cumulative probability passes the row's uniform number.

    Token t is chosen for uniforms in [P(tokens before t), P(tokens up to t)). In float64: summed over 150,000 tokens,
    float32 would move the edges by more than a rare token's probability.
    """
    rows = max(1, _AT_ONCE // scores.size(1))
    return torch.cat([_passed(*part) for part in zip(scores.split(rows), uniforms.split(rows), strict=True)])


def _passed(scores: Tensor, uniforms: Tensor) -> Tensor:
    below = scores.to(torch.float64, copy=True)  # in place from here on: fresh memory costs more than the sums
    below -= below.amax(-1, keepdim=True)
    below.exp_().cumsum_(-1)  # (R, V)
    total = below[:, -1:].contiguous()
    chosen = torch.searchsorted(below, uniforms.double()[:, None] * total, right=True)
    last = torch.searchsorted(below, total)  # of the tokens with any probability, where rounding reaches the end
    return torch.minimum(chosen, last).squeeze(-1)


def leave_only(tokens: Tensor, scores: Tensor) -> Tensor:
    """Changes logits (R, V) so that each row has one token (R,) left: the one that a greedy decoding takes."""
    return scores.fill_(-torch.inf).scatter_(-1, tokens[:, None], 0.0)

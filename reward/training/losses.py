"""The loss of GRAM's second stage, as functions of label logits, and of its Bradley-Terry baseline.

arXiv 2506.14175: label smoothing on the two label tokens optimises a regularised pairwise ranking loss. With
Δ = z_l - z_l' (the logit of the right label minus the other):

    L_ε = -(1-ε) log σ(Δ) - ε log σ(-Δ)  =  -log σ(Δ) + ε Δ        dL/dΔ = σ(Δ) - (1-ε)        Δ* = log((1-ε)/ε)

Two conventions exist for the smoothing. ε here is the PAPER's: target weights (1-ε, ε). torch's `label_smoothing=α`,
which the published code passes, spreads α over both classes: (1-α/2, α/2), so ε = α/2.

Legend: B pairs in a batch.
"""

import torch
from torch.nn import functional


def epsilon_from_torch(alpha: float) -> float:
    """The paper's ε of torch's `label_smoothing=alpha` over two classes."""
    return alpha / 2


def smoothed_ranking_loss(margin: torch.Tensor, epsilon: float) -> torch.Tensor:
    """L_ε of the margins Δ, elementwise: -log σ(Δ) + ε Δ. `epsilon` in [0, 0.5) by the paper's convention."""
    return -functional.logsigmoid(margin) + epsilon * margin


def label_loss(label_logits: torch.Tensor, label: torch.Tensor, epsilon: float) -> torch.Tensor:
    """L_ε per pair, (B,).

    label_logits: (B, 2), z_A and z_B in float32. label: (B,), 0 where A is the better response, 1 where B is.
    """
    margin = label_logits[:, 0] - label_logits[:, 1]  # (B,)
    return smoothed_ranking_loss(torch.where(label == 0, margin, -margin), epsilon)


def bradley_terry_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, required: torch.Tensor | float, epsilon: float
) -> torch.Tensor:
    """L_ε of the scores r_w and r_l, elementwise, with Δ = r_w - r_l - m (gram.md section 9).

    -(1-ε) log σ(Δ) - ε log σ(-Δ), least where r_w - r_l = m + log((1-ε)/ε). `required` is m, the margin by which the
    chosen response should win; `epsilon` in [0, 0.5) by the paper's convention. With m and ε 0 it is -log σ(r_w - r_l).
    """
    return smoothed_ranking_loss(chosen - rejected - required, epsilon)

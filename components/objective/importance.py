"""Importance weights: what makes rollouts of one distribution speak for another.

The sampler's log p differs a little from the trainer's (other kernels, other precision, weights a step behind), and a
group's mean is then a mean under the sampler s, not under the trainer p. With r = p(z) / s(z), E_p[f] = E_s[r f]: in a
group, every w_m counts r_m times, in w_bar as well, and so does every score term.

Single ratios can be enormous, so they are bounded. Truncated: min(r, bound), a little bias for much less variance
(Ionides, 2008, Truncated importance sampling; Yao et al., 2025, https://fengyao.notion.site/off-policy-rl). Masked: 0
above the bound, for what the trainer finds so much likelier than the sampler is rather an error than a rare event.

Ratios of whole sequences are the exact ones. Ratios of single tokens weigh each token's score by its own ratio alone:
biased, but of far smaller variance for long rationales.
"""

from typing import Literal

import torch
from torch import Tensor

from components.objective.estimators import Coefficients

Kind = Literal["truncated", "masked"]


def bounded(log_ratio: Tensor, kind: Kind, bound: float) -> Tensor:
    """log r after truncating or masking at r = bound, of any shape, in nats; -inf where masked.

    Raises:
        ValueError: the bound is below 1, or a ratio is NaN.
    """
    if bound < 1:
        raise ValueError(f"an importance bound of {bound:g} cuts weights of 1, which correct nothing; take 1 or more")
    if log_ratio.isnan().any():
        raise ValueError("an importance ratio is NaN: the sampler or the trainer gave no log-probability")
    limit = torch.tensor(bound, dtype=log_ratio.dtype, device=log_ratio.device).log()
    over = log_ratio > limit
    return torch.where(over, limit if kind == "truncated" else -torch.inf, log_ratio)


def reweigh(coefficients: Coefficients, log_r: Tensor) -> Coefficients:
    """The coefficients of GARL or PAFT for rollouts that were sampled from another distribution.

    coefficients: of log_w + log_r instead of log_w, so that each w counts r times in sums and means; [groups, M].
    log_r: [groups, M] log ratios of whole rationales, bounded.

    What score has beyond path is the baseline. It is no weight's own, so it has yet to be multiplied by r: that is what
    makes its expectation zero under the sampler.
    """
    r = log_r.exp()
    return Coefficients(coefficients.path + r * (coefficients.score - coefficients.path), coefficients.path)

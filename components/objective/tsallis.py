"""The Tsallis loss continuum: one loss for every commitment q in [0, 1], and how fast each one learns.

q = 0 is reinforcement learning, 1 - P; q = 1 is marginal likelihood, -log P; P = p(y* given x*) is the success
probability. A product over answer tokens leaves the range of floats long before its logarithm does, so every function
takes log P, in nats. All results are float64.

Source: Lin & Ie (2026), https://arxiv.org/abs/2604.25907v1; equations and theorems are quoted by its numbers.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# Below this logit 1 + e^theta rounds to 1 in float64, so the escape time is its leading term there.
TAIL_LOGIT = -40.0
# Gauss-Legendre panels between the tail and the target, each less than two logits wide.
PANELS, NODES = 40, 12


def check_commitment(q: float) -> None:
    """Raise a ValueError unless q lies in [0, 1]."""
    if not 0 <= q <= 1:
        raise ValueError(f"q = {q:g} lies outside [0, 1]; 0 is RL, 1 is marginal likelihood.")


def check_target(target: float) -> None:
    """Raise a ValueError unless target lies strictly between 0 and 1."""
    if not 0 < target < 1:
        raise ValueError(f"target = {target:g} lies outside (0, 1); choose a success probability such as 0.5.")


def check_log_weights(values: Tensor, name: str) -> None:
    """Raise a ValueError if a log-probability is NaN or +inf; -inf, an impossible event, is welcome."""
    if bool((values.isnan() | (values == math.inf)).any()):
        raise ValueError(
            f"{name} holds NaN or +inf; a log-probability is finite or -inf, so the forward pass behind it is broken."
        )


def log_q(u: Tensor | float, q: float) -> Tensor:
    """The Tsallis logarithm (u^(1-q) - 1) / (1-q), log u at q = 1 (equation 1), exact to rounding as q -> 1.

    Args:
        u: non-negative, any shape; log_q(0) is -1/(1-q), and -inf at q = 1.
        q: the commitment.

    Returns:
        The shape of u.

    Raises:
        ValueError: q outside [0, 1]; u negative or NaN.
    """
    u = torch.as_tensor(u, dtype=torch.float64)
    if not bool((u >= 0).all()):
        raise ValueError("u holds a negative value or NaN; the Tsallis logarithm needs u >= 0.")
    return -loss(u.log(), q)


def loss(log_p: Tensor | float, q: float) -> Tensor:
    """The loss of one example, l_q = -log_q(P) (equation 3); its mean over a data set is J_Q.

    Args:
        log_p: log P, any shape.
        q: the commitment.

    Returns:
        The shape of log_p, differentiable in it to rounding, however small P is; an impossible answer costs 1/(1-q),
        and inf at q = 1.

    Raises:
        ValueError: q outside [0, 1]; log_p NaN or +inf.
    """
    log_p = _log_probability(log_p, q)
    return -_integral_of_exp(1 - q, log_p)


def amplification(log_p: Tensor | float, q: float) -> Tensor:
    """P^(-q), at least 1: grad l_q = P^(-q) grad l_0 (Proposition 4.1). Shapes and errors as in loss."""
    return _power(_log_probability(log_p, q), -q)


def attenuation(log_p: Tensor | float, q: float) -> Tensor:
    """P^(1-q), at most 1: grad l_q = P^(1-q) grad l_1 (Proposition 4.1). Shapes and errors as in loss."""
    return _power(_log_probability(log_p, q), 1 - q)


def escape_time_order(log_p0: Tensor | float, q: float) -> Tensor:
    """How the escape time grows as p0 -> 0 at fixed q: p0^-(1-q) / (1-q), and log(1/p0) at q = 1 (Theorem 5.2).

    The leading term alone, for a score of norm one; the target enters only beyond it. Close to q = 1 it holds for very
    small p0 only (it needs (1-q) log(1/p0) >> 1); escape_time is good everywhere.

    Args:
        log_p0: log P of the untrained model, any shape.
        q: the commitment.

    Returns:
        Units of gradient-flow time (learning rate times steps of plain SGD), the shape of log_p0.

    Raises:
        ValueError: q outside [0, 1]; log_p0 NaN or +inf.
    """
    log_p0 = _log_probability(log_p0, q)
    return -log_p0 if q == 1 else torch.exp(-(1 - q) * log_p0) / (1 - q)


def escape_time(log_p0: Tensor | float, q: float, target: float = 0.5) -> Tensor:
    """The exact escape time of the sigmoid model P = sigmoid(theta) under gradient flow (Appendix C.1, equation 15).

    T_q = integral from p0 to target of du / (u^(2-q) (1-u)^2). In the logit it is the integral of one over the speed
    P^(1-q) (1-P) of theta, an analytic function that Gauss-Legendre panels of width below two sum to rounding.

    Args:
        log_p0: log P of the untrained model, any shape.
        q: the commitment.
        target: the success probability that counts as escaped, strictly between 0 and 1.

    Returns:
        Units of gradient-flow time, the shape of log_p0: 0 where p0 has already reached the target, inf at p0 = 0.

    Raises:
        ValueError: q outside [0, 1]; target outside (0, 1); log_p0 NaN or +inf.
    """
    check_target(target)
    log_p0 = _log_probability(log_p0, q).clamp(max=0)
    stop = math.log(target) - math.log1p(-target)
    start = (log_p0 - torch.log(-torch.expm1(log_p0))).clamp(max=stop)
    middle = start.clamp(min=TAIL_LOGIT)
    tail = torch.exp(-(1 - q) * middle) * _integral_of_exp(1 - q, middle - start)

    nodes, weights = (values.to(middle.device) for values in _gauss_legendre(NODES))
    width = ((stop - middle) / PANELS)[..., None]
    left = middle[..., None] + width * torch.arange(PANELS, dtype=torch.float64, device=middle.device)
    theta = left[..., None] + width[..., None] * (nodes + 1) / 2
    pace = torch.exp(-(1 - q) * logsigmoid(theta) - logsigmoid(-theta))
    return tail + (width * (pace @ weights) / 2).sum(-1)


def escort_minimiser(alpha: Tensor, q: float) -> Tensor:
    """What a categorical model converges to on outputs of frequency alpha: alpha_j^(1/q), normalised (Theorem 3.1).

    Args:
        alpha: [..., N] non-negative frequencies, any positive total.
        q: the commitment. Only q = 1 reproduces alpha (a proper scoring rule); at q = 0 any mixture of the most
            frequent outputs is a minimiser, and the one that shares the mass equally is returned.

    Returns:
        [..., N] probabilities.

    Raises:
        ValueError: q outside [0, 1]; alpha negative, not finite or without mass.
    """
    check_commitment(q)
    alpha = alpha.to(torch.float64)
    if not bool((alpha.isfinite() & (alpha >= 0)).all() and (alpha.sum(-1) > 0).all()):
        raise ValueError("alpha holds a negative or infinite value, NaN or no mass; give frequencies of outputs.")
    gap = alpha.log() - alpha.amax(-1, keepdim=True).log()
    return torch.softmax(gap / q if q > 0 else gap.masked_fill(gap < 0, -math.inf), dim=-1)


def contamination_level(noise: float, q: float) -> float:
    """The probability at which a wrong label settles when it is what a fraction `noise` of the examples says.

    The second entry of the escort minimiser of (1 - noise, noise): odds (noise / (1 - noise))^(1/q), of which
    equation 17 is the leading order for small noise. Clean data dominate at q = 0, which settles at 0.

    Raises:
        ValueError: q outside [0, 1]; noise outside (0, 1/2).
    """
    check_commitment(q)
    _check_noise(noise)
    odds = math.exp((math.log(noise) - math.log1p(-noise)) / q) if q > 0 else 0.0
    return odds / (1 + odds)


def contamination_time(eta: float, noise: float, q: float) -> float:
    """How the time to fit noise up to probability eta grows: eta^(q+1) / ((q+1) noise) (Proposition C.2).

    The leading term for eta far below contamination_level, starting from 0, for a clean label whose score has norm one;
    at or above that level noise is never fitted, so the time is inf, as it is for every eta at q = 0.

    Args:
        eta: the contamination to reach, in (0, 1).
        noise: the fraction of examples with the wrong one of two labels, in (0, 1/2).
        q: the commitment.

    Returns:
        Units of gradient-flow time.

    Raises:
        ValueError: q outside [0, 1]; eta or noise outside its range.
    """
    return eta ** (q + 1) / ((q + 1) * noise) if is_reached(eta, noise, q) else math.inf


def is_reached(eta: float, noise: float, q: float) -> bool:
    """Whether noise is ever fitted up to probability eta, which lies below contamination_level then.

    Raises:
        ValueError: q outside [0, 1]; eta or noise outside its range, as in contamination_time.
    """
    if not 0 < eta < 1:
        raise ValueError(f"eta = {eta:g} lies outside (0, 1); it is a probability to be reached.")
    return eta < contamination_level(noise, q)


def _log_probability(values: Tensor | float, q: float) -> Tensor:
    check_commitment(q)
    values = torch.as_tensor(values, dtype=torch.float64)
    check_log_weights(values, "log P")
    return values


def _check_noise(noise: float) -> None:
    if not 0 < noise < 0.5:
        raise ValueError(f"noise = {noise:g} lies outside (0, 1/2); it is the fraction of wrong labels.")


def _power(log_u: Tensor, exponent: float) -> Tensor:
    """u^exponent, with 0^0 = 1."""
    return torch.exp(exponent * log_u) if exponent else torch.ones_like(log_u)


def _integral_of_exp(rate: float, x: Tensor) -> Tensor:
    """The integral of e^(rate s) for s from 0 to x."""
    return _Expm1.apply(rate * x) / rate if rate else x


class _Expm1(torch.autograd.Function):
    """e^x - 1. PyTorch's own takes the gradient e^x back from the value, where nothing is left of it below 1e-16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.expm1(x)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad[0] * torch.exp(x)


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1], from the eigenvectors of the Jacobi matrix (Golub & Welsch, 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off_diagonal = torch.diag(k / torch.sqrt(4 * k**2 - 1), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)
    return nodes, 2 * vectors[0] ** 2

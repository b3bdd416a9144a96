"""Gradient flow, step by step: how long descent takes when nothing is known but the gradient of the loss.

The closed forms of tsallis.py can be held against these times. Both models of the paper's Appendix C have one
parameter: P = sigmoid(theta) for the escape, P = e^phi for the noise.

Source: Lin & Ie (2026), https://arxiv.org/abs/2604.25907v1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from components.objective.tsallis import check_target, is_reached, loss

STRIDE = 0.002  # of the logit, in one step; the error of a time goes with its square
STEPS = 4000  # while noise is fitted


def descend(objective: Callable[[Tensor], Tensor], start: float, stop: float, steps: int) -> tuple[Tensor, Tensor]:
    """Follow dx/dt = -d objective / dx from start to stop, the gradient by automatic differentiation.

    The midpoint rule, x' = x + dt v((x + x') / 2) with v the velocity at a place. It takes its steps in time so that
    each moves x equally far: where the gradient vanishes they become long, and all gradients can be had at once.

    Args:
        objective: of one parameter, elementwise.
        start, stop: values of the parameter; the flow must run from the one to the other.
        steps: how many.

    Returns:
        Two of [steps + 1] in float64: the time, from 0, and the parameter then.

    Raises:
        ValueError: the objective does not fall all the way from start to stop.
    """
    places = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    middle = ((places[1:] + places[:-1]) / 2).requires_grad_()
    (slope,) = torch.autograd.grad(objective(middle).sum(), middle)
    strides = places.diff() / -slope
    if not bool((strides.isfinite() & (strides >= 0)).all()):
        raise ValueError(f"gradient flow does not lead from {start:g} to {stop:g}: the objective does not fall there.")
    return torch.cat([torch.zeros(1, dtype=torch.float64), strides.cumsum(0)]), places


def escape_course(log_p0: float, q: float, target: float = 0.5) -> tuple[Tensor, Tensor]:
    """How P = sigmoid(theta) rises under gradient flow of the loss l_q, from p0 to the target.

    Its last time is to be tsallis.escape_time, whose formula is not used.

    Args:
        log_p0: log P of the untrained model, in nats.
        q: the commitment.
        target: the success probability that counts as escaped, strictly between 0 and 1.

    Returns:
        Two of [steps + 1]: units of gradient-flow time, and log P then; no time passes where p0 has the target already.

    Raises:
        ValueError: q outside [0, 1]; target outside (0, 1); log_p0 not finite or not negative; a gradient that leaves
            the range of floats, as at q = 0 for p0 below 1e-308.
    """
    check_target(target)
    if not -math.inf < log_p0 < 0:
        raise ValueError(f"log P = {log_p0:g} is none to start from; it is finite and negative.")
    stop = math.log(target) - math.log1p(-target)
    start = min(log_p0 - math.log(-math.expm1(log_p0)), stop)
    steps = max(1, math.ceil((stop - start) / STRIDE))
    time, theta = descend(lambda theta: loss(logsigmoid(theta), q), start, stop, steps)
    return time, logsigmoid(theta)


def fitting_time(eta: float, noise: float, q: float) -> float:
    """The time to fit noise up to probability eta, of which tsallis.contamination_time is the leading order.

    Of a model sure of the clean label, P = e^phi from phi = 0 (its score has norm one), under gradient flow of
    (1 - noise) l_q(P) + noise l_q(1 - P): equation 16.

    Arguments, result and errors as there.
    """
    if not is_reached(eta, noise, q):
        return math.inf

    def objective(phi: Tensor) -> Tensor:
        return (1 - noise) * loss(phi, q) + noise * loss(torch.log(-torch.expm1(phi)), q)

    time, _ = descend(objective, 0.0, math.log1p(-eta), STEPS)
    return time[-1].item()

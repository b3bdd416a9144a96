"""Every form of GARL and commitments from pole to pole, as parameters of tests, and values in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from components.objective.estimators import Coefficients

Estimator = Callable[[Tensor], Coefficients]

INF = math.inf
COMMITMENTS = [0.0, 0.25, 0.5, 0.75, 1.0]
FORMS = {
    "plug-in": {"baseline": False},
    "baseline": {},
    "debiased plug-in": {"baseline": False, "debias": True},
    "debiased baseline": {"debias": True},
}
by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
by_commitment = pytest.mark.parametrize("q", COMMITMENTS)


def float64(*values: float | tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

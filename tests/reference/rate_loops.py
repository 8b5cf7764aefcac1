"""Slow twins of the effective learning rates: coordinate by coordinate, with Python floats."""

from __future__ import annotations

import math
import statistics

from torch import Tensor, nn
from torch.optim import Optimizer


def coordinate_rates(optimizer: Optimizer, parameter: nn.Parameter) -> list[float]:
    """Step per unit of a gradient that has been the same for long, each coordinate's second moment as it is."""
    group = next(group for group in optimizer.param_groups if any(parameter is held for held in group["params"]))
    state = optimizer.state[parameter]
    rates = []
    for index in range(parameter.numel()):
        if "exp_avg_sq" in state:
            moment = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].reshape(-1)[index].item()
            corrected = moment / (1 - group["betas"][1] ** state["step"].item())
            rates.append(group["lr"] / (math.sqrt(corrected) + group["eps"]))
        elif "square_avg" in state:
            moment = state["square_avg"].reshape(-1)[index].item()
            rates.append(group["lr"] / (1 - group["momentum"]) / (math.sqrt(moment) + group["eps"]))
        else:
            rates.append(group["lr"] * (1 - group["dampening"] * bool(group["momentum"])) / (1 - group["momentum"]))
    return rates


def middle(rates: list[float]) -> float:
    """The median; odd counts only, so that there is no choice to make."""
    assert len(rates) % 2
    return statistics.median(rates)


def cosine(left: Tensor, right: Tensor) -> float:
    """cos of the angle between two tensors, term by term."""
    pairs = list(zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True))
    dot = math.fsum(a * b for a, b in pairs)
    return dot / math.sqrt(math.fsum(a * a for a, _ in pairs) * math.fsum(b * b for _, b in pairs))

"""Slow twins of update statistics and of moments: dense decompositions, and Python floats coordinate by coordinate."""

from __future__ import annotations

import math

import numpy
from torch import Tensor, nn
from torch.optim import Optimizer


def singular_values(weight: Tensor) -> numpy.ndarray:
    """Of a weight as rows of its first axis, all of them."""
    return numpy.linalg.svd(weight.double().numpy().reshape(weight.shape[0], -1), compute_uv=False)


def operator_norm_ratio(weight: Tensor) -> float:
    """σ_max over √(fan_out/fan_in)."""
    fan_out = weight.shape[0]
    return float(singular_values(weight)[0]) / math.sqrt(fan_out / (weight.numel() / fan_out))


def stable_rank(weight: Tensor) -> float:
    """Σσ²/σ_max²."""
    values = singular_values(weight)
    return float((values**2).sum() / values[0] ** 2)


def convolved_norm(weight: Tensor, size: int) -> float:
    """The largest singular value of a convolution with circular padding on size × size inputs, frequency by frequency.

    Source: Sedghi et al., arXiv 1805.10408.
    """
    spectra = numpy.fft.fft2(weight.double().numpy(), (size, size)).transpose(2, 3, 0, 1)
    return float(numpy.linalg.svd(spectra, compute_uv=False).max())


def gradient_over_moment(optimizer: Optimizer, parameter: nn.Parameter, gradient: Tensor) -> float:
    """RMS_t of Adam's kind, with the gradient taken into v first."""
    (group,) = optimizer.param_groups
    state, (_, beta2) = optimizer.state[parameter], group["betas"]
    total = 0.0
    for index, entry in enumerate(gradient.reshape(-1).tolist()):
        g = entry + (0.0 if group.get("decoupled_weight_decay") else group["weight_decay"]) * float(
            parameter.detach().reshape(-1)[index]
        )
        v = beta2 * state["exp_avg_sq"].reshape(-1)[index].item() + (1 - beta2) * g * g
        if group["amsgrad"]:
            v = max(v, state["max_exp_avg_sq"].reshape(-1)[index].item())
        v /= 1 - beta2 ** (state["step"].item() + 1)
        total += g * g / max(v, group["eps"] ** 2)
    return math.sqrt(total / gradient.numel())


def same_signs(gradient: Tensor, moment: Tensor) -> float:
    """Share of coordinates of one sign, among those where neither is zero."""
    pairs = zip(gradient.reshape(-1).tolist(), moment.reshape(-1).tolist(), strict=True)
    products = [g * m for g, m in pairs if g != 0 and m != 0]
    return sum(1.0 for product in products if product > 0) / len(products)

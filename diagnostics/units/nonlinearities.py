"""The non-linearities we know, and what their slope says about a unit.

A unit's health is read from φ'(z), the slope where it works: zero slope passes no gradient, the same slope everywhere
makes the unit a linear map. For that each family needs the slope it has where it is "on".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Nonlinearity:
    """A family of element-wise functions.

    Attributes:
        name: the field's word.
        slope: of the part where it works.
        bounded: whether it flattens on both sides, so that a flat unit is saturated rather than dead.
    """

    name: str
    slope: float = 1.0
    bounded: bool = False


_FAMILIES: dict[Nonlinearity, tuple[Callable[..., Any], ...]] = {
    Nonlinearity("relu"): (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    Nonlinearity("relu6"): (F.relu6,),
    Nonlinearity("leaky relu"): (F.leaky_relu, F.leaky_relu_),
    Nonlinearity("prelu"): (F.prelu, torch.prelu, Tensor.prelu),
    Nonlinearity("elu"): (F.elu, F.elu_),
    Nonlinearity("celu"): (F.celu, F.celu_, torch.celu, torch.celu_),
    Nonlinearity("selu", 1.0507009873554805): (F.selu, F.selu_, torch.selu, torch.selu_),
    Nonlinearity("gelu"): (F.gelu,),
    Nonlinearity("silu"): (F.silu,),
    Nonlinearity("mish"): (F.mish,),
    Nonlinearity("softplus"): (F.softplus,),
    Nonlinearity("hardswish"): (F.hardswish,),
    Nonlinearity("hardtanh", bounded=True): (F.hardtanh, F.hardtanh_),
    Nonlinearity("hardsigmoid", 1 / 6, bounded=True): (F.hardsigmoid,),
    Nonlinearity("softsign", bounded=True): (F.softsign,),
    Nonlinearity("tanh", bounded=True): (torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh),
    Nonlinearity("sigmoid", 0.25, bounded=True): (
        torch.sigmoid,
        torch.sigmoid_,
        Tensor.sigmoid,
        Tensor.sigmoid_,
        F.sigmoid,
    ),
}

NONLINEARITY: dict[Callable[..., Any], Nonlinearity] = {
    function: family for family, functions in _FAMILIES.items() for function in functions
}
"""The family of each torch function that is one."""

_RELU6 = Nonlinearity("relu6")

GLU = Nonlinearity("glu", 0.25, bounded=True)
"""A sigmoid of half of its input, times the other half: not element-wise, its gate is."""


def family_of(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> Nonlinearity | None:
    """The family of a call, or None when it is no non-linearity that we know.

    ``nn.ReLU6`` calls ``hardtanh`` between 0 and 6: what lies flat on its left is silent, so dead and not saturated.
    """
    if function is F.glu:
        return GLU
    family = NONLINEARITY.get(function)
    if family is not None and family.name == "hardtanh":
        lowest = arguments[1] if len(arguments) > 1 else named.get("min_val", -1.0)
        return _RELU6 if lowest == 0 else family
    return family


WRITTEN_OUT: dict[str, Nonlinearity] = {
    name: Nonlinearity(family)
    for family, names in {
        "gelu": (
            "NewGELUActivation",
            "GELUActivation",
            "FastGELUActivation",
            "QuickGELUActivation",
            "AccurateGELUActivation",
        ),
        "silu": ("SiLUActivation",),
    }.items()
    for name in names
}
"""Modules that compute a non-linearity from simpler operations, by class name: what happens inside is not a unit."""


def slopes(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """φ'(z), element by element, for any element-wise φ; same shape as z."""
    # Inside an activation checkpoint what autograd saves is counted: these tensors are none of its business.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        leaf = z.detach().clone().requires_grad_()
        # Out-of-place input, so that in-place variants have something to write on.
        (gradient,) = torch.autograd.grad(function(leaf * 1.0).sum(), leaf)
    return gradient


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor

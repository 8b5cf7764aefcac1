"""Units of one network put in the order of another's: permutations that change the weights and not the function.

The hidden units of a chain of layers can be renamed: rows of one weight and the columns of the next are permuted
together. Of all renamings of θ_b the one nearest to θ_a is sought, layer by layer: with the others fixed, the best
permutation of one layer is a linear assignment (weight matching, algorithm 1 of arXiv 2209.04836). The first sweep
goes up from the input and looks at incoming weights alone, so that a renamed copy is found exactly; later sweeps look
at both sides, until nothing moves. What is found is a local optimum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diagnostics.objective import Objective
from diagnostics.trajectory.barrier import loss_with_own_statistics

MOST_SWEEPS = 50
TOL = 1e-3
"""How far the loss of a renamed network may be from the network's own, by rounding."""


@dataclass(frozen=True)
class Matching:
    """The weights of one network in the order of another.

    Attributes:
        parameters: the second network's, renamed; as they were where that cannot be done.
        moved: how many units have another place.
        units: how many could have.
        note: why units cannot be matched; empty where they were.
    """

    parameters: dict[str, Tensor]
    moved: int
    units: int
    note: str = ""


@dataclass
class _Layer:
    weight: str
    width: int
    vectors: list[str] = field(default_factory=list)
    """Biases, gains and shifts of its outputs."""


def match_units(objective: Objective, first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> Matching:
    """Put the hidden units of ``last`` in the order of those of ``first``.

    The model has to be a chain of ``Linear`` and ``Conv`` layers with batch normalisation, activations and pooling
    between; whether it is, is seen from its modules, and tried: a network whose units are shuffled at random has to
    have the same loss.

    Args:
        objective: whose model it is, and on which that is tried.
        first: parameters by the model's names.
        last: those to be put in order.

    Source:
        Ainsworth et al., arXiv 2209.04836.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> objective = Objective(model, nn.MSELoss(), (torch.ones(3, 1), torch.zeros(3, 1)))
        >>> first = dict(model.named_parameters())
        >>> turned = {"0.weight": first["0.weight"].flip(0), "0.bias": first["0.bias"].flip(0)}
        >>> found = match_units(objective, first, {**first, **turned, "2.weight": first["2.weight"].flip(1)})
        >>> found.moved, torch.equal(found.parameters["2.weight"], first["2.weight"])
        (2, True)
    """
    own = {name: tensor.detach() for name, tensor in last.items()}
    layers = _chain(objective.model)
    if isinstance(layers, str):
        return Matching(own, 0, 0, layers)
    generator = torch.Generator().manual_seed(0)
    shuffled = [torch.randperm(layer.width, generator=generator) for layer in layers[:-1]]
    before, after = (loss_with_own_statistics(objective, one) for one in (own, _renamed(own, layers, shuffled)))
    if not math.isclose(before, after, rel_tol=TOL, abs_tol=TOL**2):
        note = f"no plain chain of layers: with its units renamed the loss is {after:.4g} and not {before:.4g}"
        return Matching(own, 0, 0, note)
    goal = {name: first[name].detach().to(torch.float64).cpu() for name in own}
    wide = {name: tensor.to(torch.float64).cpu() for name, tensor in own.items()}
    orders = _match(goal, wide, layers)
    moved = sum(int((order != torch.arange(len(order))).sum()) for order in orders)
    return Matching(_renamed(own, layers, orders), moved, sum(layer.width for layer in layers[:-1]))


def _chain(model: nn.Module) -> list[_Layer] | str:
    """The layers in order, or why the model is no chain of them."""
    layers: list[_Layer] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own = [key for key, _ in module.named_parameters(recurse=False)]
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and type(module).__name__[0] != "N":
            if getattr(module, "groups", 1) != 1:
                return f"{name} is a grouped convolution"
            weight = module.weight
            if layers and (weight[0].numel() % layers[-1].width or weight.shape[1] % layers[-1].width):
                return f"{name} takes {weight.shape[1]} inputs, and the layer before it has {layers[-1].width} outputs"
            layers.append(_Layer(f"{prefix}weight", weight.shape[0]))
            layers[-1].vectors += [f"{prefix}bias"] if module.bias is not None else []
        elif isinstance(module, _BatchNorm) and layers and module.num_features == layers[-1].width:
            layers[-1].vectors += [f"{prefix}{key}" for key in own]
        elif own:
            return f"{name or 'the model'} is a {type(module).__name__}, whose units cannot be renamed here"
    if len(layers) < 2:
        return "there are no hidden units between layers"
    seen = {id(parameter) for parameter in model.parameters()}
    if len(seen) != sum(1 + len(layer.vectors) for layer in layers):
        return "layers share parameters"
    return layers


def _renamed(parameters: Mapping[str, Tensor], layers: list[_Layer], orders: list[Tensor]) -> dict[str, Tensor]:
    """The same network with the units of each hidden layer in another order."""
    renamed = dict(parameters)
    for place, order in enumerate(orders):
        order = order.to(parameters[layers[place].weight].device)
        for name in (layers[place].weight, *layers[place].vectors):
            renamed[name] = renamed[name][order]
        following = renamed[layers[place + 1].weight]
        by_unit = following.reshape(len(following), layers[place].width, -1)
        renamed[layers[place + 1].weight] = by_unit[:, order].reshape(following.shape)
    return renamed


def _match(goal: dict[str, Tensor], own: dict[str, Tensor], layers: list[_Layer]) -> list[Tensor]:
    orders = [torch.arange(layer.width) for layer in layers[:-1]]
    for sweep in range(MOST_SWEEPS):
        before = [order.clone() for order in orders]
        for place, layer in enumerate(layers[:-1]):
            # Everything renamed but this layer.
            held = [*orders[:place], torch.arange(layer.width), *orders[place + 1 :]]
            now = _renamed(own, layers, held)
            likeness = goal[layer.weight].flatten(1) @ now[layer.weight].flatten(1).mT
            for name in layer.vectors:
                likeness += torch.outer(goal[name], now[name])
            if sweep:
                following = layers[place + 1].weight
                parts = [state[following].unflatten(1, (layer.width, -1)) for state in (goal, now)]
                likeness += torch.einsum("oak,obk->ab", *(part.flatten(2) for part in parts))
            orders[place] = torch.from_numpy(linear_sum_assignment(likeness.numpy(), maximize=True)[1])
        if sweep and all(torch.equal(old, new) for old, new in zip(before, orders, strict=True)):
            break
    return orders

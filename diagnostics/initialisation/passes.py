"""One pass forward and one back through a network, and what goes by at every depth.

Depth is counted in blocks where a network repeats some, in layers with a matrix for weight elsewhere; where all there
is are linear layers, in their pre-activations, of which theory speaks. Per place and batch there are kept: the mean
square and the cosines of what each example has there, and the squared norm of each example's gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from diagnostics.blocks import batch_axis, blocks, first_tensor, require_finite
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.units.forward import arguments_of

Kind = Literal["pre-activation", "block", "layer"]

EXAMPLES = 64
"""Of each batch so many are looked at: their pairs are some two thousand."""


@dataclass
class Seen:
    """What one place has on one batch of n examples.

    Attributes:
        lengths: (n,) mean square over the units.
        cosines: (n, n); the diagonal is 1.
        gradients: (n,) squared norms of each example's gradient; None where none came by.
    """

    lengths: Tensor
    cosines: Tensor
    gradients: Tensor | None = None


@dataclass
class Pass:
    """One batch, forward and back.

    Attributes:
        places: by path (``#2`` for a second use), in the order in which they ran.
        inputs: what went into the first place, for as many examples as are looked at.
    """

    places: dict[str, Seen] = field(default_factory=dict)
    inputs: Tensor | None = None


@dataclass(frozen=True)
class Passes:
    """All batches.

    Attributes:
        batches: one by one.
        weights: by module path, norm of the gradient in the module's parameters; over all batches where they make one
            objective.
    """

    batches: list[Pass]
    weights: dict[str, float]


def depth_of(model: nn.Module) -> tuple[Kind, dict[str, nn.Module]]:
    """What depth is counted in, and the modules it is made of."""
    holders = {
        path: module for path, module in model.named_modules() if next(module.parameters(False), None) is not None
    }
    if holders and all(isinstance(module, nn.Linear) for module in holders.values()):
        return "pre-activation", holders
    if found := blocks(model):
        return "block", found
    lookup = (nn.Embedding, nn.EmbeddingBag)
    return "layer", {
        path: module
        for path, module in holders.items()
        if not isinstance(module, lookup) and any(tensor.ndim >= 2 for tensor in module.parameters(False))
    }


def run(model: nn.Module, batch: Any, places: Mapping[str, nn.Module]) -> Passes:
    """Forward and back: the gradient of an Objective's loss, or of a random linear function of a batch's outputs."""
    if not isinstance(batch, Objective):
        seen, parts = _of_batch(model, batch, places)
        return Passes([seen], _by_place(parts, places))
    objective = batch.narrowed(lambda _, tensor: tensor.is_floating_point())
    batches, total = [], [torch.zeros_like(tensor) for tensor in objective.space.tensors]
    for index, weight in enumerate(objective.weights):
        seen = Pass()
        with quiet(objective.model, objective.mode), _watched(seen, places):
            leaves = [value.requires_grad_() for value in objective.space.values()]
            _, found = objective.batch_gradient(index, leaves)
        batches.append(seen)
        total = [one + weight * part.detach() for one, part in zip(total, found, strict=True)]
    return Passes(batches, _by_place(dict(zip(objective.space.names, total, strict=True)), places))


def _of_batch(model: nn.Module, batch: Any, places: Mapping[str, nn.Module]) -> tuple[Pass, dict[str, Tensor]]:
    seen = Pass()
    with quiet(model, "eval"):
        batch = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        named = {name: tensor for name, tensor in model.named_parameters() if tensor.is_floating_point()}
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in named.items()}
        with _watched(seen, places):
            output = first_tensor(functional_call(model, leaves | buffers, *arguments_of(batch)))
        if output is None or not output.requires_grad or not leaves:
            return seen, {}
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        found = torch.autograd.grad((output * direction).sum(), list(leaves.values()), allow_unused=True)
    return seen, {name: part for name, part in zip(leaves, found, strict=True) if part is not None}


def _by_place(parts: Mapping[str, Tensor], places: Mapping[str, nn.Module]) -> dict[str, float]:
    squares = {name: float(part.double().square().sum()) for name, part in parts.items()}
    return {
        # A model that is one layer has an empty path.
        path: math.sqrt(sum(square for name, square in squares.items() if not path or name.startswith(f"{path}.")))
        for path in places
    }


@contextmanager
def _watched(seen: Pass, places: Mapping[str, nn.Module]) -> Iterator[None]:
    uses: Counter[str] = Counter()

    def leaving(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None:
                return
            uses[path] += 1
            place = path if uses[path] == 1 else f"{path}#{uses[path]}"
            require_finite(place, tensor.detach())
            if not seen.places and inputs and isinstance(inputs[0], Tensor):
                seen.inputs = inputs[0].detach()[:EXAMPLES].double().cpu()
            axis = batch_axis(module, tensor)
            seen.places[place] = one = _measured(tensor.detach(), axis)
            if tensor.requires_grad:
                # Before anything is done to the tensor in place, so the gradient is that of what it holds now.
                tensor.register_hook(lambda gradient: _note(one, gradient, axis))

        return hook

    with ExitStack() as stack:
        for path, module in places.items():
            stack.callback(module.register_forward_hook(leaving(path)).remove)
        yield


@contextmanager
def watched_layers(layers: Mapping[str, nn.Module], see: Callable[[str, Any, Tensor, Tensor], None]) -> Iterator[None]:
    """Hand path, module, input and output of every layer that runs inside the context to ``see``, as copies."""

    def leaving(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: see(path, module, inputs[0].detach().clone(), output.detach().clone())

    with ExitStack() as stack:
        for path, module in layers.items():
            stack.callback(module.register_forward_hook(leaving(path)).remove)
        yield


def _measured(tensor: Tensor, axis: int) -> Seen:
    rows = tensor.movedim(axis, 0)[:EXAMPLES].flatten(1).double()
    norms = torch.linalg.vector_norm(rows, dim=1)
    unit = rows / norms.where(norms > 0, 1.0)[:, None]
    return Seen((norms.square() / rows.shape[1]).cpu(), (unit @ unit.mT).cpu())


def _note(seen: Seen, gradient: Tensor, axis: int) -> None:
    rows = gradient.detach().movedim(axis, 0)
    # A mean loss gives each of n examples an n-th of its own gradient.
    squares = (len(rows) * torch.linalg.vector_norm(rows[:EXAMPLES].flatten(1).double(), dim=1)).square().cpu()
    seen.gradients = squares if seen.gradients is None else seen.gradients + squares

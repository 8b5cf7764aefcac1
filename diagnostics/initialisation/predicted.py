"""What a wide random network with these σ_w and σ_b would do to these inputs, where there is theory for it.

Theory speaks of fully-connected networks: linear layers, each followed by one element-wise function or none. Whether
that is so is not read off the modules but seen in a pass: what one layer puts out is what the function is given, and
what the function gives is what the next layer gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.initialisation.gaussian_maps import Function, kernel_map, mean_square_slope
from diagnostics.initialisation.passes import Pass, watched_layers
from diagnostics.quiet import quiet
from diagnostics.units.capture import Product, Site, capture
from diagnostics.units.forward import forward_passes


@dataclass(frozen=True)
class Prediction:
    """Of one layer's pre-activations.

    Attributes:
        length: q, averaged over examples.
        cosine: c, averaged over pairs.
        factor: χ to the next layer; None at the last.
        bound: of the error of q and q c by the series that was cut, relative to q.
        how: the variances it was made from.
    """

    length: float
    cosine: float
    factor: float | None
    bound: float
    how: str


class _NoTheoryError(Exception):
    """Why there is none; in words."""


def predict(
    model: nn.Module, batch: Any, layers: Mapping[str, nn.Module], passes: Sequence[Pass]
) -> tuple[list[Prediction], str]:
    """A prediction for every place, or none and the reason."""
    try:
        linears, functions = _chain(model, batch, layers)
        return _predictions(linears, functions, [one.inputs for one in passes]), ""
    except _NoTheoryError as reason:
        return [], str(reason)


def _chain(model: nn.Module, batch: Any, layers: Mapping[str, nn.Module]) -> tuple[list[nn.Linear], list[Function]]:
    """The linear layers as they run, and what is between them."""
    linears: list[tuple[str, nn.Linear, Tensor, Tensor]] = []
    after: list[list[Site]] = []

    def see_layer(path: str, module: nn.Linear, x: Tensor, z: Tensor) -> None:
        linears.append((path, module, x, z))
        after.append([])

    def see(site: Site | Product) -> None:
        if after and isinstance(site, Site):
            after[-1].append(site)

    first = forward_passes(model, batch)[0]
    with quiet(model, "eval"), torch.no_grad(), watched_layers(layers, see_layer), capture(model, see):
        first()
    if len({path for path, *_ in linears}) < len(linears):
        raise _NoTheoryError("a layer is used twice, so that its weights are not independent")
    functions: list[Function] = []
    for (path, _, x, z), sites, following in zip(linears, after, [*linears[1:], None], strict=True):
        if x.ndim != 2:
            raise _NoTheoryError(f"the input of {path!r} is not one vector for each example")
        if following is None:
            break
        given = following[2]
        if not sites and _equal(given, z):
            functions.append(_identity)
        elif len(sites) == 1 and _equal(sites[0].z, z) and _equal(sites[0].h, given):
            functions.append(_trusted(sites[0].function, path))
        else:
            raise _NoTheoryError(f"between {path!r} and {following[0]!r} there is more than one element-wise function")
    return [module for _, module, *_ in linears], functions


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _identity(z: Tensor) -> Tensor:
    return z


def _trusted(function: Function, path: str) -> Function:
    """The function, if it is the same for every unit."""
    grid = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(2, 3)
    try:
        fits = torch.allclose(function(grid.clone()), function(grid.clone().reshape(6, 1)).reshape(2, 3))
    except RuntimeError:
        fits = False
    if not fits:
        raise _NoTheoryError(f"the function behind {path!r} is not the same for every unit")
    return function


def _predictions(
    linears: Sequence[nn.Linear], functions: Sequence[Function], inputs: Sequence[Tensor | None]
) -> list[Prediction]:
    kernels = [x @ x.mT / x.shape[1] for x in inputs if x is not None]
    bound, found = 0.0, []
    for index, layer in enumerate(linears):
        spread = layer.in_features * float(layer.weight.detach().double().square().mean())
        offset = 0.0 if layer.bias is None else float(layer.bias.detach().double().square().mean())
        if index:
            stepped = [kernel_map(functions[index - 1], kernel) for kernel in kernels]
            kernels = [kernel for kernel, _ in stepped]
            bound = max(bound, *(error / (float(kernel.diagonal().mean()) or 1.0) for kernel, error in stepped))
        kernels = [spread * kernel + offset for kernel in kernels]
        how = f"a wide random network with σ_w² = {spread:.4g}, σ_b² = {offset:.4g} here; {layer.out_features} units"
        lengths, cosines = torch.cat([kernel.diagonal() for kernel in kernels]), [_cosines(one) for one in kernels]
        factor = None
        if index + 1 < len(linears):
            following = linears[index + 1]
            slope = mean_square_slope(functions[index], lengths).mean()
            factor = following.in_features * float(following.weight.detach().double().square().mean() * slope)
        found.append(Prediction(float(lengths.mean()), float(torch.cat(cosines).mean()), factor, bound, how))
    return found


def _cosines(kernel: Tensor) -> Tensor:
    scales = kernel.diagonal().sqrt()
    return (kernel / (scales[:, None] * scales))[~torch.eye(len(kernel), dtype=torch.bool)]

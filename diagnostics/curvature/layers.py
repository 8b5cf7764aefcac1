"""The layers of a parameter selection: the modules that hold its parameters, as spans of one vector."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from diagnostics.parameters import ParameterSpace


@dataclass(frozen=True)
class Layer:
    """One module's own parameters.

    Attributes:
        name: path of the module; empty for the model itself.
        group: which tensors of the selection, as a slice.
        span: which entries of a vector (P,), as a slice.
    """

    name: str
    group: slice
    span: slice

    @property
    def size(self) -> int:
        """How many parameters."""
        return int(self.span.stop - self.span.start)


def layers_of(space: ParameterSpace) -> tuple[Layer, ...]:
    """Layers in the order of the vector; tied parameters belong to the module that is named first.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> [(layer.name, layer.size) for layer in layers_of(ParameterSpace(model))]
        [('0', 8), ('2', 3)]
    """
    layers: list[Layer] = []
    tensor = entry = 0
    for name, members in groupby(space.names, key=lambda name: name.rpartition(".")[0]):
        count = len(list(members))
        size = sum(space.sizes[tensor : tensor + count])
        layers.append(Layer(name, slice(tensor, tensor + count), slice(entry, entry + size)))
        tensor, entry = tensor + count, entry + size
    return tuple(layers)

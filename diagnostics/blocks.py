"""The blocks that a network repeats along its depth: the places where a residual stream can be read.

A block is a module that has parts of its own, and siblings of its class whose names differ in numbers only: the layers
of a transformer, the blocks of a ResNet. What repeats inside a block, as heads or experts do, runs side by side and not
in depth. Containers are no blocks where what they hold is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.errors import DiagnosticsError

_CHANNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost blocks by module path, in the order in which the model lists them.

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 3, enable_nested_tensor=False)
        >>> list(blocks(encoder))
        ['layers.0', 'layers.1', 'layers.2']
    """
    return dict(_blocks("", model))


def _blocks(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    children = list(module.named_children())
    kinds = Counter(_kind(name, child) for name, child in children)
    for name, child in children:
        where = f"{path}.{name}".lstrip(".")
        # A network of one layer keeps it in a list all the same.
        repeated = (
            next(child.children(), None) is not None
            and not isinstance(child, nn.ModuleList | nn.ModuleDict)
            and (kinds[_kind(name, child)] >= 2 or isinstance(module, nn.ModuleList))
        )
        inner = [] if repeated and not isinstance(child, nn.Sequential) else list(_blocks(where, child))
        yield from inner or ([(where, child)] if repeated else [])


def _kind(name: str, module: nn.Module) -> tuple[type[nn.Module], str]:
    return type(module), re.sub(r"\d+", "", name)


@contextmanager
def block_outputs(model: nn.Module, see: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Hand what every block puts out inside the context to ``see``, and leave nothing behind.

    The name is the block's path, with ``#2`` for the second use of the same. Of several outputs it is the first tensor.
    """
    uses: Counter[str] = Counter()

    def leaving(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                uses[path] += 1
                see(path if uses[path] == 1 else f"{path}#{uses[path]}", module, tensor)

        return hook

    with ExitStack() as stack:
        for path, module in blocks(model).items():
            stack.callback(module.register_forward_hook(leaving(path)).remove)
        yield


def first_tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor of what a module returns, if any."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.ndim >= 2 and output.numel() else None
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def unit_axis(block: nn.Module, output: Tensor) -> int:
    """Where a block's output holds its units: axis 1 after convolutions, the last after anything else.

    Three axes are mostly tokens, also where a convolution takes part, as in speech models with linear layers.
    """
    parts = list(block.modules())
    convolutional = any(isinstance(part, _CHANNELS) for part in parts)
    if output.ndim == 3:
        convolutional = convolutional and not any(isinstance(part, nn.Linear | nn.LayerNorm) for part in parts)
    return 1 if convolutional and output.ndim > 2 else output.ndim - 1


def batch_axis(block: nn.Module, output: Tensor) -> int:
    """Where a block's output holds its examples: torch's own attention puts them second unless told otherwise."""
    second = output.ndim == 3 and any(getattr(part, "batch_first", True) is False for part in block.modules())
    return 1 if second else 0


def require_finite(place: str, values: Tensor) -> None:
    """Refuse what has NaN or infinities in it.

    Raises:
        DiagnosticsError: with the place and how many there are.
    """
    if not bool(values.isfinite().all()):
        bad = int((~torch.isfinite(values)).sum())
        raise DiagnosticsError(
            f"the values at {place!r} are not finite",
            given=f"{bad:,} of {values.numel():,} values are NaN or infinite",
            expected="finite weights and inputs",
        )

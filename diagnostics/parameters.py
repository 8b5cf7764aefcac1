"""Which parameters a measure looks at, and how they become one vector.

A selection is made once, by name, from the parameters that train. Tied parameters are one tensor and count once.
Vectors over the selection have shape (P,), in the order of ``model.named_parameters()``.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from diagnostics.batches import describe
from diagnostics.errors import DiagnosticsError

Selection = str | Sequence[str] | Callable[[str, Tensor], bool] | None


def unwrap(model: nn.Module) -> nn.Module:
    """The module the user wrote, inside what ``torch.compile``, DDP or DataParallel put around it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(layer)) is layer
        True
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


class ParameterSpace:
    """The selected parameters of a model as one vector space of dimension P.

    Args:
        model: any module, wrapped or not.
        params: None for every parameter with ``requires_grad``; a glob over names (or several) to narrow those; a
            callable ``(name, tensor) -> bool`` whose word is final, frozen parameters included.

    Raises:
        DiagnosticsError: params is no selection, or selects nothing; parameters sharded, uninitialised, complex or on
            the meta device.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> ParameterSpace(model).total, ParameterSpace(model, "0.*").names
        (11, ('0.weight', '0.bias'))
    """

    def __init__(self, model: nn.Module, params: Selection = None) -> None:
        params = _checked(params)
        everything = dict(model.named_parameters())
        chosen = {name: tensor for name, tensor in everything.items() if _selected(name, tensor, params)}
        if not chosen:
            raise DiagnosticsError(
                "params selects no parameter",
                given=f"params={params!r} on {type(model).__name__} with {len(everything)} parameters",
                expected="a glob over the names of trainable parameters, a callable, or None for all of them",
                attempt=_suggestion(everything),
            )
        for name, tensor in chosen.items():
            _require_plain(name, tensor)
        self.names: tuple[str, ...] = tuple(chosen)
        self.tensors: tuple[nn.Parameter, ...] = tuple(chosen.values())
        self.sizes: tuple[int, ...] = tuple(tensor.numel() for tensor in self.tensors)
        self.total: int = sum(self.sizes)
        self.device: torch.device = self.tensors[0].device
        dtype = self.tensors[0].dtype
        for tensor in self.tensors:
            dtype = torch.promote_types(dtype, tensor.dtype)
        self.dtype: torch.dtype = dtype

    def flatten(self, parts: Iterable[Tensor]) -> Tensor:
        """One vector (P,) from one tensor per selected parameter, detached from any graph."""
        whole = (part.detach().to_dense() if part.is_sparse else part.detach() for part in parts)
        return torch.cat([part.reshape(-1).to(self.device, self.dtype) for part in whole])

    def unflatten(self, vector: Tensor) -> tuple[Tensor, ...]:
        """One tensor per selected parameter, with its shape, dtype and device, from a vector (P,)."""
        return tuple(
            part.view(tensor.shape).to(tensor.device, tensor.dtype)
            for part, tensor in zip(vector.split(list(self.sizes)), self.tensors, strict=True)
        )

    def values(self) -> tuple[Tensor, ...]:
        """Copies of the selected parameters as they are now."""
        with torch.inference_mode(False):
            return tuple(tensor.detach().clone() for tensor in self.tensors)

    def items(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and live tensor of each selected parameter."""
        return zip(self.names, self.tensors, strict=True)


def _checked(params: Selection) -> Selection:
    """The selection, an iterable of globs as a tuple."""
    if params is None or isinstance(params, str):
        return params
    if callable(params) and not isinstance(params, nn.Module):
        try:
            inspect.signature(params).bind("", torch.empty(0))
        except TypeError:
            given = f"a callable that does not take two arguments, {params!r}"
        except ValueError:
            # Some callables written in C have no signature.
            return params
        else:
            return params
    else:
        if isinstance(params, Iterable) and not isinstance(params, Tensor | nn.Module):
            params = tuple(params)
            if all(isinstance(pattern, str) for pattern in params):
                return params
        given = describe(params)
    raise DiagnosticsError(
        "params is not a selection of parameters",
        given=given,
        expected="a glob over the names of parameters, several of them, a callable (name, tensor) -> bool, or None",
        attempt="params='0.*', or params=lambda name, tensor: tensor.ndim > 1",
    )


def _selected(name: str, tensor: Tensor, params: Selection) -> bool:
    if callable(params):
        return bool(params(name, tensor))
    if not tensor.requires_grad:
        return False
    if params is None:
        return True
    patterns = [params] if isinstance(params, str) else params
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _suggestion(everything: dict[str, nn.Parameter]) -> str:
    if not everything:
        return "a model that has parameters"
    trainable = [name for name, tensor in everything.items() if tensor.requires_grad]
    if not trainable:
        return "every parameter is frozen: unfreeze some, or pass params=lambda name, tensor: True"
    return "names here are " + ", ".join(trainable[:4]) + (", ..." if len(trainable) > 4 else "")


def _require_plain(name: str, tensor: Tensor) -> None:
    """Refuse tensors for which a flat vector of values does not exist."""
    if nn.parameter.is_lazy(tensor):
        reason, remedy = "not initialised yet (lazy module)", "run one forward pass first"
    elif type(tensor).__name__ == "DTensor" or type(tensor.data).__name__ == "DTensor":
        reason, remedy = "sharded over ranks (DTensor)", "gather the full state dict into a plain copy of the model"
    elif tensor.is_meta:
        reason, remedy = "on the meta device", "load the weights first"
    elif tensor.is_complex():
        reason, remedy = "complex", "params= to leave it out"
    elif not tensor.is_floating_point():
        reason, remedy = f"of dtype {tensor.dtype}", "params= to leave it out"
    else:
        return
    raise DiagnosticsError(
        f"parameter {name!r} is {reason}", expected="a real, floating-point tensor held whole", attempt=remedy
    )

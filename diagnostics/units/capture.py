"""What goes into and comes out of every non-linearity, in one eager forward pass.

A ``TorchFunctionMode`` sees ``nn.ReLU``, ``F.relu``, ``torch.tanh`` and ``x.relu()`` alike, since modules call the
functions. Module hooks, registered for this one pass and removed after it, only tell where we are. Which axis holds
the units is read from the operation before: after a convolution they are axis 1, after anything else the last.

Pre-activation is not enough: on it, a ReLU unit that never fires can look like the most alive one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diagnostics.units.nonlinearities import WRITTEN_OUT, Nonlinearity, family_of

_CHANNELS_SECOND = {
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    F.batch_norm, F.group_norm, F.instance_norm,
}  # fmt: skip
_CHANNELS_LAST = {
    F.linear, F.bilinear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.addmm, torch.mm, torch.bmm,
    torch.einsum, F.layer_norm, F.rms_norm, F.embedding, F.scaled_dot_product_attention,
    F.multi_head_attention_forward, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu,
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One non-linearity at work on one batch.

    Attributes:
        place: module path; ``path.function`` for a functional call; ``#2`` for the second use of the same.
        nonlinearity: its family.
        function: the element-wise map z ↦ h as it was called.
        z: pre-activation, (samples, units).
        h: post-activation, (samples, units).
    """

    place: str
    nonlinearity: Nonlinearity
    function: Callable[[Tensor], Tensor]
    z: Tensor
    h: Tensor


@contextmanager
def capture(model: nn.Module, see: Callable[[Site], None]) -> Iterator[None]:
    """Hand every non-linearity that runs inside the context to ``see``, one at a time, and leave nothing behind."""
    watch = _Watch(see)
    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(watch.entering(path, module), prepend=True).remove)
            leaving = watch.leaving(path, module)
            stack.callback(module.register_forward_hook(leaving, with_kwargs=False, always_call=True).remove)
        stack.enter_context(watch)
        yield


class _Watch(TorchFunctionMode):
    def __init__(self, see: Callable[[Site], None]) -> None:
        super().__init__()
        self.see = see
        self.path: list[tuple[str, nn.Module]] = []
        self.inside: list[tuple[nn.Module, Tensor]] = []
        self.uses: Counter[str] = Counter()
        self.axis = -1

    def entering(self, path: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.path.append((path, module))
            if type(module).__name__ in WRITTEN_OUT and inputs and isinstance(inputs[0], Tensor):
                self.inside.append((module, inputs[0].detach().clone()))

        return hook

    def leaving(self, path: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if self.path and self.path[-1][1] is module:
                self.path.pop()
            if self.inside and self.inside[-1][0] is module:
                _, z = self.inside.pop()
                if isinstance(output, Tensor) and not self.inside:
                    self._hand_over(path, WRITTEN_OUT[type(module).__name__], module.forward, z, output)

        return hook

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _CHANNELS_SECOND:
            self.axis = 1
        elif func in _CHANNELS_LAST:
            self.axis = -1
        family = family_of(func, args, kwargs)
        operand = args[0] if args else kwargs.get("input")
        # Outside every module is the loss, whose functions are not units.
        if (
            family is None
            or not self.path
            or self.inside
            or not isinstance(operand, Tensor)
            or not operand.is_floating_point()
        ):
            return func(*args, **kwargs)
        # The call may write in place: keep z from before.
        z = operand.detach().clone()
        result = func(*args, **kwargs)
        rest = args[1:]
        for name in ("input", "out"):
            kwargs.pop(name, None)
        self._hand_over(self._place(family), family, lambda x: func(x, *rest, **kwargs), z, result)
        return result

    def _place(self, family: Nonlinearity) -> str:
        path, module = self.path[-1]
        is_the_module_itself = type(module).__module__ == nn.ReLU.__module__
        return path if path and is_the_module_itself else f"{path}.{family.name}".lstrip(".")

    def _hand_over(
        self, place: str, family: Nonlinearity, function: Callable[[Tensor], Tensor], z: Tensor, h: Tensor
    ) -> None:
        if z.ndim < 2 or z.shape != h.shape or z.numel() == 0:
            return
        self.uses[place] += 1
        name = place if self.uses[place] == 1 else f"{place}#{self.uses[place]}"
        axis = 1 if z.ndim == 2 else self.axis
        # Whoever looks may call the function again: that call is not another unit.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self.see(Site(name, family, function, _by_unit(z, axis), _by_unit(h.detach(), axis)))


def _by_unit(tensor: Tensor, axis: int) -> Tensor:
    """(samples, units): every position of every example is a sample."""
    return tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])

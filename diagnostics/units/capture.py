"""What goes into and comes out of every non-linearity, in one eager forward pass.

A ``TorchFunctionMode`` sees ``nn.ReLU``, ``F.relu``, ``torch.tanh`` and ``x.relu()`` alike, since modules call the
functions. Module hooks, registered for this one pass and removed after it, only tell where we are. Which axis holds
the units is read from the operation before: after a convolution they are axis 1, or 0 of an image without a batch,
after anything else the last.

A gated unit, silu(a) · b, is seen twice: its activation branch as a non-linearity, and its output as the product in
which the activation is multiplied by another tensor of the product's size. ``F.glu`` is both in one call.

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
from torch.utils.weak import WeakIdKeyDictionary

from diagnostics.units.incoming import Incoming, Trail
from diagnostics.units.nonlinearities import GLU, WRITTEN_OUT, Nonlinearity, family_of
from diagnostics.units.places import Places, places

_CONVOLUTIONS = {
    F.conv1d: 1, F.conv2d: 2, F.conv3d: 3,
    F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3,
    torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3,
    torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3,
}  # fmt: skip
"""How many axes each has behind its channels; in front of them is the batch, or nothing."""
_CHANNELS_SECOND = {F.batch_norm, F.group_norm, F.instance_norm}
_CHANNELS_LAST = {
    F.linear, F.bilinear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.addmm, torch.mm, torch.bmm,
    torch.einsum, F.layer_norm, F.rms_norm, F.embedding, F.scaled_dot_product_attention,
    F.multi_head_attention_forward, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu,
}  # fmt: skip
_PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}


@dataclass(frozen=True)
class Site:
    """One non-linearity at work on one batch.

    Attributes:
        place: module path; ``path.function`` for a functional call; ``#2`` for the second use of the same.
        nonlinearity: its family.
        function: the element-wise map z ↦ h as it was called.
        z: pre-activation, (samples, units).
        h: post-activation, (samples, units).
        output: the tensor that the model goes on with, of any shape.
        axis: which axis of ``output`` holds the units.
        incoming: the weights that z was computed with, where that could be followed.
    """

    place: str
    nonlinearity: Nonlinearity
    function: Callable[[Tensor], Tensor]
    z: Tensor
    h: Tensor
    output: Tensor
    axis: int
    incoming: tuple[Incoming, ...]


@dataclass(frozen=True)
class Product:
    """The first product in which the output of a non-linearity is multiplied by another tensor.

    Attributes:
        place: of the non-linearity.
        h: (samples, units).
        incoming: the weights that the other factor was computed with, where that could be followed.
    """

    place: str
    h: Tensor
    incoming: tuple[Incoming, ...]


@contextmanager
def capture(model: nn.Module, see: Callable[[Site | Product], None]) -> Iterator[None]:
    """Hand every non-linearity that runs inside the context to ``see``, one at a time, and leave nothing behind."""
    with ExitStack() as stack:
        watch = _Watch(see, stack.enter_context(places(model)))
        for path, module in model.named_modules():
            if type(module).__name__ in WRITTEN_OUT:
                stack.callback(module.register_forward_pre_hook(watch.entering(module), prepend=True).remove)
                leaving = watch.leaving(path, module)
                stack.callback(module.register_forward_hook(leaving, with_kwargs=False, always_call=True).remove)
        stack.enter_context(watch)
        yield


class _Watch(TorchFunctionMode):
    def __init__(self, see: Callable[[Site | Product], None], path: Places) -> None:
        super().__init__()
        self.see = see
        self.path = path
        self.inside: list[tuple[nn.Module, Tensor, tuple[Incoming, ...]]] = []
        self.uses: Counter[str] = Counter()
        self.axis = -1
        self.trail = Trail()
        self.outputs: Any = WeakIdKeyDictionary()

    def entering(self, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                self.inside.append((module, inputs[0].detach().clone(), self.trail.of(inputs[0])))

        return hook

    def leaving(self, path: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if self.inside and self.inside[-1][0] is module:
                _, z, incoming = self.inside.pop()
                if isinstance(output, Tensor) and not self.inside:
                    family = WRITTEN_OUT[type(module).__name__]
                    self._hand_over(path, family, module.forward, z, output, incoming)

        return hook

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        family = family_of(func, args, kwargs)
        operand = args[0] if args else kwargs.get("input")
        if func in _CONVOLUTIONS and isinstance(operand, Tensor):
            self.axis = operand.ndim - 1 - _CONVOLUTIONS[func]
        elif func in _CHANNELS_SECOND:
            self.axis = 1
        elif func in _CHANNELS_LAST:
            self.axis = -1
        # Outside every module is the loss, whose functions are not units.
        if (
            family is None
            or not self.path
            or self.inside
            or not isinstance(operand, Tensor)
            or not operand.is_floating_point()
        ):
            result = func(*args, **kwargs)
            if not self.inside:
                self._multiplied(func, args, result)
                self.trail.follow(func, args, kwargs, result)
            return result
        incoming = self.trail.of(operand)
        if family is GLU:
            result = func(*args, **kwargs)
            self._glu(operand, args[1] if len(args) > 1 else kwargs.get("dim", -1), result, incoming)
            return result
        # The call may write in place: keep z from before.
        z = operand.detach().clone()
        result = func(*args, **kwargs)
        rest = args[1:]
        for name in ("input", "out"):
            kwargs.pop(name, None)
        self._hand_over(self._place(family), family, lambda x: func(x, *rest, **kwargs), z, result, incoming)
        return result

    def _place(self, family: Nonlinearity) -> str:
        path, module = self.path[-1]
        is_the_module_itself = type(module).__module__ == nn.ReLU.__module__
        return path if path and is_the_module_itself else f"{path}.{family.name}".lstrip(".")

    def _glu(self, operand: Tensor, axis: int, product: Tensor, incoming: tuple[Incoming, ...]) -> None:
        """The second half gates the first: the gate is the non-linearity, and the result its product."""
        with torch.no_grad():
            gate = operand.detach().chunk(2, axis)[1].clone()
        place = self._place(GLU)
        self._hand_over(place, GLU, torch.sigmoid, gate, product, incoming, axis=axis, h=gate.sigmoid())
        self._report(product, product, ())

    def _hand_over(
        self,
        place: str,
        family: Nonlinearity,
        function: Callable[[Tensor], Tensor],
        z: Tensor,
        output: Tensor,
        incoming: tuple[Incoming, ...],
        *,
        axis: int | None = None,
        h: Tensor | None = None,
    ) -> None:
        if z.ndim < 2 or z.shape != output.shape or z.numel() == 0:
            return
        self.uses[place] += 1
        name = place if self.uses[place] == 1 else f"{place}#{self.uses[place]}"
        axis = axis if axis is not None else 1 if z.ndim == 2 and self.axis else self.axis
        self.outputs[output] = name, axis % z.ndim
        after = _by_unit(output.detach() if h is None else h, axis)
        # Whoever looks may call the function again: that call is not another unit.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self.see(Site(name, family, function, _by_unit(z, axis), after, output, axis, incoming))

    def _multiplied(self, func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> None:
        if func not in _PRODUCTS or len(args) < 2 or not all(isinstance(arg, Tensor) for arg in args[:2]):
            return
        for activation, other in (args[:2], args[1::-1]):
            # A factor of fewer values is a scale or a mask; a square is a function of one branch only.
            if activation in self.outputs and other is not activation and other.shape == result.shape:
                self._report(activation, result, self.trail.of(other))

    def _report(self, activation: Tensor, product: Tensor, incoming: tuple[Incoming, ...]) -> None:
        place, axis = self.outputs.pop(activation, (None, 0))
        if place is not None and product.ndim > axis and product.numel():
            with torch.no_grad(), torch._C.DisableTorchFunction():
                self.see(Product(place, _by_unit(product.detach(), axis), incoming))


def _by_unit(tensor: Tensor, axis: int) -> Tensor:
    """(samples, units): every position of every example is a sample."""
    return tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])

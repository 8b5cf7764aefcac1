"""What each known operation adds to the gradients of single examples, from its input and the gradient at its output.

An operation that is not in the table, or is called in a way that is not foreseen, is unknown: the parameters in it
are measured example by example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from diagnostics.recorded.contributions import BLOCK_BYTES, Contribution, Convolved, Direct, Lookup, Outer
from diagnostics.recorded.layouts import Layout
from diagnostics.recorded.recording import Use
from diagnostics.recorded.windows import padding_of, tuple_of


class UnknownOperationError(Exception):
    """This operation is not known well enough."""


@dataclass(frozen=True)
class Call:
    """One use of one parameter, with the gradient at its output.

    Attributes:
        use: the operation.
        operand: the parameter.
        gradient: at the output.
        layout: of the output.
        layouts: of the arguments that have examples, by ``id``.
    """

    use: Use
    operand: Tensor
    gradient: Tensor
    layout: Layout
    layouts: Mapping[int, Layout]

    def front(self, tensor: Tensor) -> Tensor:
        """An argument with its examples in front."""
        if id(tensor) not in self.layouts:
            raise UnknownOperationError
        return self.layouts[id(tensor)].front(tensor.detach())

    def front_gradient(self) -> Tensor:
        """The gradient at the output with the examples in front."""
        return self.layout.front(self.gradient)

    def spread(self, full: Tensor, aligned: tuple[int, ...]) -> Direct:
        """The gradient of a parameter that was broadcast over the output, from that of each copy of it.

        Args:
            full: in the output's shape.
            aligned: the parameter's shape, with ones, for as many dimensions as the output has.
        """
        if len(aligned) != full.ndim or aligned[self.layout.axis] != 1:
            raise UnknownOperationError
        fronted = self.layout.front(full)
        reduced = [axis + 1 for axis, size in enumerate(aligned) if size == 1 and fronted.shape[axis + 1] != 1]
        if any(size not in (1, fronted.shape[axis + 1]) for axis, size in enumerate(aligned)):
            raise UnknownOperationError
        if reduced:
            fronted = fronted.sum(reduced)
        return Direct(fronted.reshape(len(fronted), -1))

    def trailing(self, full: Tensor) -> Direct:
        """``spread`` of a parameter whose dimensions are the last of the output."""
        shape = tuple(self.operand.shape)
        return self.spread(full, (1,) * (full.ndim - len(shape)) + shape)

    def channels(self, full: Tensor) -> Direct:
        """``spread`` of one number for each channel."""
        return self.spread(full, (1, self.operand.numel()) + (1,) * (full.ndim - 2))


def contribution(call: Call) -> Contribution:
    """What a use adds to the gradients of the examples.

    Raises:
        UnknownOperationError: the operation or the way it is called.
    """
    known = TABLE.get(call.use.function)
    same = sum(tensor is call.operand for tensor in call.use.tensors())
    if known is None or same != 1:
        raise UnknownOperationError
    try:
        return known(call, *call.use.args, **call.use.kwargs)
    except TypeError as unforeseen:
        # Arguments by other names than those that were foreseen.
        raise UnknownOperationError from unforeseen


def _outer(left: Tensor, right: Tensor) -> Outer:
    """From (N, ..., r) and (N, ..., c)."""
    return Outer(
        left.reshape(len(left), 1, -1, left.shape[-1]),
        right.reshape(len(right), 1, -1, right.shape[-1]),
    )


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Contribution:
    if call.operand is weight:
        return _outer(call.front_gradient(), call.front(input))
    if call.operand is bias:
        return call.trailing(call.gradient)
    raise UnknownOperationError


def _matmul(call: Call, input: Tensor, other: Tensor) -> Contribution:
    if call.operand is other and other.ndim == 2:
        return _outer(call.front(input), call.front_gradient())
    if call.operand is other and other.ndim == 1:
        return _outer(call.front(input), call.front_gradient().unsqueeze(-1))
    if call.operand is input and input.ndim == 2 and other.ndim > 1:
        return _outer(call.front_gradient().mT, call.front(other).mT)
    raise UnknownOperationError


def _addmm(call: Call, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Contribution:
    if call.operand is input:
        return call.trailing(beta * call.gradient)
    if call.operand is mat2:
        return _outer(alpha * call.front(mat1), call.front_gradient())
    raise UnknownOperationError


def _convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Contribution:
    if call.operand is bias:
        return call.channels(call.gradient)
    if call.operand is not weight:
        raise UnknownOperationError
    kernel = tuple(weight.shape[2:])
    strides, dilations = (tuple_of(setting, len(kernel)) for setting in (stride, dilation))
    padded = padding_of(padding, kernel, dilations)
    return Convolved(call.front_gradient(), call.front(input), kernel, strides, padded, dilations, groups)


def _transposed_convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Contribution:
    """The gradient of the weight is that of the convolution it undoes, with input and output in each other's place."""
    if call.operand is bias:
        return call.channels(call.gradient)
    if call.operand is not weight:
        raise UnknownOperationError
    kernel = tuple(weight.shape[2:])
    strides, dilations = (tuple_of(setting, len(kernel)) for setting in (stride, dilation))
    # What lies past the padding was cut off; output_padding only ever adds positions that no window may need.
    padded = padding_of(padding, kernel, dilations)
    return Convolved(call.front(input), call.front_gradient(), kernel, strides, padded, dilations, groups)


def _embedding(
    call: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Contribution:
    if call.operand is not weight or max_norm is not None or scale_grad_by_freq:
        raise UnknownOperationError
    gradient, ids = call.front_gradient(), call.front(input).flatten(1)
    values = gradient.reshape(*ids.shape, -1)
    if padding_idx is not None:
        values = values * (ids != padding_idx % len(weight))[:, :, None]
    return Lookup(ids, values, len(weight))


def _getitem(call: Call, table: Tensor, index: Any) -> Contribution:
    if not (call.operand is table and isinstance(index, Tensor) and table.ndim == 2):
        raise UnknownOperationError
    if index.is_floating_point() or index.dtype in (torch.bool, torch.uint8):
        raise UnknownOperationError
    ids = call.front(index).flatten(1)
    return Lookup(ids % len(table), call.front_gradient().reshape(*ids.shape, -1), len(table))


def _layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Contribution:
    if call.operand is bias:
        return call.trailing(call.gradient)
    if call.operand is not weight:
        raise UnknownOperationError
    return call.trailing(call.gradient * F.layer_norm(input.detach(), normalized_shape, None, None, eps))


def _rms_norm(
    call: Call, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Contribution:
    if call.operand is not weight:
        raise UnknownOperationError
    return call.trailing(call.gradient * F.rms_norm(input.detach(), normalized_shape, None, eps))


def _group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Contribution:
    if call.operand is bias:
        return call.channels(call.gradient)
    if call.operand is not weight:
        raise UnknownOperationError
    # Σ g (x - mean) / std from sums over positions, as torch has it, of as many examples as the caches hold.
    channels = input.shape[1]
    precise = torch.promote_types(input.dtype, torch.float32)
    step = max(1, BLOCK_BYTES // (4 * input[0].nbytes))
    rows = []
    for some, gradient in zip(input.detach().split(step), call.gradient.split(step), strict=True):
        x, g = (side.reshape(len(side), channels, -1).to(precise) for side in (some, gradient))
        _, mean, inverse = torch.native_group_norm(x, None, None, len(x), channels, x.shape[2], num_groups, eps)
        mean, inverse = (group.repeat_interleave(channels // num_groups, dim=1) for group in (mean, inverse))
        rows.append((torch.linalg.vecdot(g, x) - mean * g.sum(2)) * inverse)
    return call.spread(torch.cat(rows).to(input.dtype), (1, channels))


def _instance_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Contribution:
    if call.operand is bias:
        return call.channels(call.gradient)
    if call.operand is not weight:
        raise UnknownOperationError
    # Statistics of the input would move the running ones.
    mean, variance = (None, None) if use_input_stats else (running_mean, running_var)
    standard = F.instance_norm(input.detach(), mean, variance, None, None, use_input_stats, momentum, eps)
    return call.channels(call.gradient * standard)


def _batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Contribution:
    if training or running_mean is None or running_var is None:
        raise UnknownOperationError
    if call.operand is bias:
        return call.channels(call.gradient)
    if call.operand is not weight:
        raise UnknownOperationError
    mean, variance = running_mean.detach(), running_var.detach()
    standard = F.batch_norm(input.detach(), mean, variance, None, None, False, momentum, eps)
    return call.channels(call.gradient * standard)


def _elementwise(call: Call, *args: Any, **kwargs: Any) -> Contribution:
    """Every copy of a broadcast parameter as a variable of its own."""
    shape = call.use.output
    copies = call.operand.detach().expand(shape).requires_grad_()

    def given(leaf: Any) -> Any:
        if leaf is call.operand:
            return copies
        return leaf.detach() if isinstance(leaf, Tensor) else leaf

    with torch.enable_grad():
        output = call.use.function(*tree_map(given, args), **tree_map(given, kwargs))
        (full,) = torch.autograd.grad(output, copies, call.gradient)
    return call.trailing(full)


def _added(call: Call, *args: Any, **kwargs: Any) -> Contribution:
    """A sum: every copy has the gradient of its place."""
    return _elementwise(call, *args, **kwargs) if kwargs else call.trailing(call.gradient)


def _added_in_place(call: Call, input: Tensor, other: Tensor) -> Contribution:
    if call.operand is not other:
        raise UnknownOperationError
    return call.trailing(call.gradient)


def _copied(call: Call, *args: Any, **kwargs: Any) -> Contribution:
    return call.trailing(call.gradient)


def _prelu(call: Call, input: Tensor, weight: Tensor) -> Contribution:
    if call.operand is not weight or input.ndim < 2:
        raise UnknownOperationError
    return call.channels(call.gradient * input.detach().clamp(max=0))


Handler = Callable[..., Contribution]


def _table() -> dict[Callable[..., Any], Handler]:
    named: dict[Handler, tuple[str, ...]] = {
        _linear: ("linear",),
        _matmul: ("matmul", "mm", "__matmul__"),
        _addmm: ("addmm",),
        _convolution: ("conv1d", "conv2d", "conv3d"),
        _transposed_convolution: ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        _embedding: ("embedding",),
        _getitem: ("__getitem__",),
        _layer_norm: ("layer_norm",),
        _rms_norm: ("rms_norm",),
        _group_norm: ("group_norm",),
        _instance_norm: ("instance_norm",),
        _batch_norm: ("batch_norm",),
        _added: ("add", "__add__", "__radd__"),
        _added_in_place: ("add_", "__iadd__"),
        _elementwise: (
            *("sub", "mul", "multiply", "div", "divide", "true_divide", "subtract", "maximum", "minimum", "pow"),
            *("__sub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__pow__", "__rpow__"),
        ),
        _copied: ("expand", "expand_as", "broadcast_to", "repeat"),
        _prelu: ("prelu",),
    }
    table: dict[Callable[..., Any], Handler] = {}
    for handler, names in named.items():
        # torch.layer_norm and its like take their arguments in another order than the functions of torch.nn.
        reordered = (_embedding, _layer_norm, _group_norm, _instance_norm, _batch_norm)
        owners = (F,) if handler in reordered else (F, torch, Tensor)
        for owner in owners:
            for name in names:
                if hasattr(owner, name):
                    table[getattr(owner, name)] = handler
    return table


TABLE = _table()

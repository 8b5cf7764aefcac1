"""Every attention that runs in a forward pass, whichever way it is written.

Seen are ``F.scaled_dot_product_attention``; ``F.multi_head_attention_forward`` and with it ``nn.MultiheadAttention``,
whose insides are opened up; and attention written out: a softmax over the last axis of scores (B, H, T, S), or
(B·H, T, S) inside an attention module, whose result goes into a matrix product. The scores are then worked out again
for a few queries at a time, so that fused kernels stay fused and memory stays bounded. Where the result goes through
a linear map that mixes the heads, that map is handed over too: what a head gives is what passes it.

Not seen: ``flex_attention``, and kernels of other packages, which never show their scores.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from diagnostics.units.attention_scores import Scores, fused, written_out
from diagnostics.units.places import Places, places

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
_PRODUCT = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True)
class Call:
    """One attention at work on one batch.

    Attributes:
        place: module path; ``#2`` for the second one of the same module.
        scores: of some of its queries.
        shape: (B, H, T, S).
        scale: of q·k; None where scores were written out.
        output: (B, H, T, E), of each head.
    """

    place: str
    scores: Scores
    shape: tuple[int, int, int, int]
    scale: float | None
    output: Tensor


@dataclass(frozen=True)
class Projection:
    """The linear map that the outputs of an attention went through: weight (outputs, H·E)."""

    place: str
    weight: Tensor


@contextmanager
def attention_calls(model: nn.Module, see: Callable[[Call | Projection], None]) -> Iterator[None]:
    """Hand every attention that runs inside the context to ``see``, and leave nothing behind."""
    with places(model) as path, _Watch(see, path):
        yield


class _Watch(TorchFunctionMode):
    def __init__(self, see: Callable[[Call | Projection], None], path: Places) -> None:
        super().__init__()
        self.see = see
        self.path = path
        self.uses: Counter[str] = Counter()
        self.opened_heads: int | None = None
        self.softmaxes: Any = WeakIdKeyDictionary()
        """Scores by what the softmax made of them."""
        self.outputs: Any = WeakIdKeyDictionary()
        """Place and number of values of each token, by output."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.multi_head_attention_forward and self.opened_heads is None:
            return self._opened(func, args, kwargs)
        # A softmax may be written in place of its scores; they are needed later.
        result = func(*args, **kwargs)
        if not self.path or not isinstance(result, Tensor):
            return result
        with torch.no_grad(), torch._C.DisableTorchFunction():
            if func is F.scaled_dot_product_attention:
                self._fused(result, *args, **kwargs)
            elif func in _SOFTMAX:
                self._written_out(result, args, kwargs)
            else:
                self._follow(func, args, result)
        return result

    def _opened(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same function without its own look-out for modes: what it calls is then seen call by call."""
        scope = {**func.__globals__, "has_torch_function": lambda _: False}
        same = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
        same.__kwdefaults__ = func.__kwdefaults__
        self.opened_heads = int(args[4] if len(args) > 4 else kwargs["num_heads"])
        try:
            with self:
                return same(*args, **kwargs)
        finally:
            self.opened_heads = None

    def _fused(
        self,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if query.is_nested or query.ndim < 2 or output.numel() == 0 or key.shape[-2] == 0:
            return
        if query.ndim < 4:
            query, key, output = (self._four(tensor) for tensor in (query, key, output))
            if attn_mask is not None and attn_mask.ndim == 3:
                attn_mask = self._four(attn_mask)
        scores, factor = fused(query, key, attn_mask, is_causal, scale)
        *batch, heads, rows, _ = query.shape
        self._hand_over(scores, (math.prod(batch), heads, rows, key.shape[-2]), factor, output)

    def _written_out(self, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input")
        axis = args[1] if len(args) > 1 else kwargs.get("dim", -1)
        if isinstance(given, Tensor) and axis in (-1, given.ndim - 1) and self._is_attention(given):
            self.softmaxes[result] = given.detach()

    def _is_attention(self, scores: Tensor) -> bool:
        """Three axes may be anything, such as a choice of experts for each token."""
        names = [type(module).__name__.lower() for _, module in self.path]
        inside = self.opened_heads is not None or any("attention" in name or "attn" in name for name in names)
        return scores.ndim == 4 or (scores.ndim == 3 and inside)

    def _follow(self, func: Callable[..., Any], args: tuple[Any, ...], result: Tensor) -> None:
        if func is torch.einsum:
            operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
            for place, operand in enumerate(operands):
                if operand in self.softmaxes:
                    scores, tokens_first = self.softmaxes.pop(operand), _tokens_first(args[0], place)
                    if tokens_first is not None:
                        self._attended(scores, result, tokens_first)
            return
        tensors = [arg for arg in args[:3] if isinstance(arg, Tensor)]
        if tensors and func in _PRODUCT and tensors[0] in self.softmaxes:
            self._attended(self.softmaxes.pop(tensors[0]), result)
            return
        same = [tensor for tensor in tensors if tensor.numel() == result.numel()]
        for tensor in tensors:
            if tensor in self.outputs and self._projected(func, args, tensor):
                return
        # Casts, dropout, masks, reshapes: what keeps the number of values is the same thing still. A sum with another
        # of its size, as with a residual, is something else.
        if len(same) == 1:
            for tracked in (self.softmaxes, self.outputs):
                if same[0] in tracked:
                    tracked[result] = tracked[same[0]]

    def _attended(self, scores: Tensor, result: Tensor, tokens_first: bool = False) -> None:
        logits = self._four(scores)
        batch, heads, rows, keys = logits.shape
        output = result.transpose(1, 2) if tokens_first else result
        if result.numel() == 0 or keys == 0 or output.numel() % (batch * heads * rows):
            return
        output = output.reshape(batch, heads, rows, -1)
        self._hand_over(written_out(logits), (batch, heads, rows, keys), None, output, followed=result)

    def _four(self, tensor: Tensor) -> Tensor:
        """(B, H, ., .): heads in the batch axis are told apart where the module says how many there are."""
        if tensor.ndim == 4:
            return tensor
        if tensor.ndim == 2:
            return tensor[None, None]
        heads = self.opened_heads or self._heads_of_module()
        heads = heads if tensor.shape[0] % heads == 0 else 1
        return tensor.reshape(-1, heads, *tensor.shape[1:])

    def _heads_of_module(self) -> int:
        found = [getattr(self.path[-1][1], name, None) for name in _HEADS]
        return next((value for value in found if isinstance(value, int) and value > 0), 1)

    def _projected(self, func: Callable[..., Any], args: tuple[Any, ...], output: Tensor) -> bool:
        place, width = self.outputs[output]
        weight: Any = None
        if func is F.linear and args[0] is output:
            weight = args[1]
        elif func is torch.addmm and args[1] is output:
            weight = args[2].mT
        elif func in _PRODUCT and args[0] is output and args[1].ndim == 2:
            weight = args[1].mT
        if not (isinstance(weight, Tensor) and weight.shape[-1] == width):
            return False
        self.see(Projection(place, weight.detach()))
        return True

    def _hand_over(
        self,
        scores: Scores,
        shape: tuple[int, int, int, int],
        scale: float | None,
        output: Tensor,
        followed: Tensor | None = None,
    ) -> None:
        place = self.path[-1][0] or "attention"
        self.uses[place] += 1
        name = place if self.uses[place] == 1 else f"{place}#{self.uses[place]}"
        self.outputs[output if followed is None else followed] = name, shape[1] * output.shape[-1]
        self.see(Call(name, scores, shape, scale, output.detach().reshape(*shape[:3], -1)))


def _tokens_first(equation: Any, place: int) -> bool | None:
    """Whether an einsum of attention "bhts" puts tokens before heads, as in "bhts,bshd->bthd"; None if unreadable."""
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    axes = inputs.split(",")[place]
    if len(axes) != 4 or axes[1] not in output or axes[2] not in output:
        return None
    return output.index(axes[1]) > output.index(axes[2])

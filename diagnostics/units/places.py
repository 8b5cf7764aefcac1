"""Where in a model we are while it runs: the path of the module whose forward is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Places = list[tuple[str, nn.Module]]


@contextmanager
def places(model: nn.Module) -> Iterator[Places]:
    """A stack of (path, module), innermost last, kept by hooks that are gone after the context.

    Example:
        >>> import torch
        >>> inside, seen = nn.ReLU(), []
        >>> model = nn.Sequential(nn.Sequential(inside))
        >>> with places(model) as stack:
        ...     handle = inside.register_forward_pre_hook(lambda *_: seen.append(stack[-1][0]))
        ...     _ = model(torch.zeros(1))
        >>> seen
        ['0.0']
    """
    stack: Places = []

    def entering(path: str, module: nn.Module) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append((path, module))

        return hook

    def leaving(module: nn.Module) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if stack and stack[-1][1] is module:
                stack.pop()

        return hook

    with ExitStack() as handles:
        for path, module in model.named_modules():
            handles.callback(module.register_forward_pre_hook(entering(path, module), prepend=True).remove)
            handles.callback(module.register_forward_hook(leaving(module), always_call=True).remove)
        yield stack

"""The context every measure runs in: it sees the model as it is, and leaves everything as it was.

Second-order autograd needs plain eager kernels (math attention, no autocast, no compiled frames, full float32
products); harmlessness needs random states, modes and hooks back in place, also after an error. Parameters, gradients
and buffers are protected elsewhere: measures differentiate copies through ``functional_call`` and never the live
tensors.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Mode = Literal["eval", "train"]

_FLOAT32_SETTINGS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    *(getattr(torch.backends.cudnn, operation) for operation in ("conv", "rnn")),
    *(getattr(torch.backends.mkldnn, operation) for operation in ("matmul", "conv", "rnn")),
)


@contextmanager
def quiet(model: nn.Module, mode: Mode | None = None, seed: int = 0) -> Iterator[None]:
    """Run a measurement on ``model`` without a trace.

    Inside: gradients on, inference mode and autocast off, math attention, compiled modules run eagerly, IEEE float32
    products, random states seeded with ``seed``, backward hooks of others set aside, every module in ``mode`` (None
    leaves modes alone). All of it is restored on the way out, also after an error.

    Example:
        >>> model = nn.Dropout()
        >>> before = torch.get_rng_state()
        >>> with quiet(model, "eval"):
        ...     _ = torch.rand(3), model.training
        >>> bool((torch.get_rng_state() == before).all()), model.training
        (True, True)
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in {"cpu", *(tensor.device.type for tensor in model.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_math_attention())
        # torch._dynamo takes seconds to import; while nothing has imported it, nothing is compiled.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # cuDNN's recurrent kernels have no double backward (pytorch#5261).
        if torch.cuda.is_available() and any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(_ieee_float32())
        stack.enter_context(_foreign_backward_hooks_aside(model))
        stack.enter_context(_modes(model, mode))
        stack.enter_context(random_states(seed))
        yield


@contextmanager
def first_order() -> Iterator[None]:
    """Attention by the kernels the user has it by, inside ``quiet``: for what is differentiated once and no more."""
    with sdpa_kernel(_AS_FOUND[-1] if _AS_FOUND else SDPBackend.MATH):
        yield


_AS_FOUND: list[list[SDPBackend]] = []
"""The attention kernels that were allowed before the outermost ``quiet`` was entered."""


@contextmanager
def _math_attention() -> Iterator[None]:
    allowed = {
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
    }
    found = [backend for backend, on in allowed.items() if on]
    _AS_FOUND.append(_AS_FOUND[-1] if _AS_FOUND else found)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _AS_FOUND.pop()


@contextmanager
def _ieee_float32() -> Iterator[None]:
    before = [setting.fp32_precision for setting in _FLOAT32_SETTINGS]
    try:
        for setting in _FLOAT32_SETTINGS:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(_FLOAT32_SETTINGS, before, strict=True):
            setting.fp32_precision = value


@contextmanager
def random_states(seed: int) -> Iterator[None]:
    """Seed every global random state inside the block, and put them back behind it."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices_with_a_random_state()):
            reseed(seed)
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def reseed(seed: int) -> None:
    """Seed every global random state that exists. Only for use inside ``quiet``, which puts them back.

    ``torch.manual_seed`` would also queue a seed for accelerators that have not been started yet, and so reach into
    the training run later.
    """
    torch.default_generator.manual_seed(seed)
    if _devices_with_a_random_state():
        torch.get_device_module().manual_seed_all(seed)
    random.seed(seed)
    numpy.random.seed(seed)


def _devices_with_a_random_state() -> list[int]:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or (accelerator.type == "cuda" and not torch.cuda.is_initialized()):
        return []
    return list(range(torch.accelerator.device_count()))


@contextmanager
def _modes(model: nn.Module, mode: Mode | None) -> Iterator[None]:
    """Set ``.training`` flag by flag: ``model.train()`` may be overridden, and would forget mixed modes."""
    before = [(module, module.training) for module in model.modules()]
    try:
        if mode is not None:
            for module, _ in before:
                module.training = mode == "train"
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _foreign_backward_hooks_aside(model: nn.Module) -> Iterator[None]:
    """Take full backward hooks off for the while: they would fire twice per product and break ``torch.func``."""
    attributes = ("_backward_hooks", "_backward_pre_hooks")
    before: list[tuple[nn.Module, str, OrderedDict[int, Any]]] = []
    everywhere = [getattr(torch.nn.modules.module, f"_global{attribute}") for attribute in attributes]
    global_hooks = [dict(hooks) for hooks in everywhere]
    try:
        for hooks in everywhere:
            hooks.clear()
        for module in model.modules():
            for attribute in attributes:
                if hooks := getattr(module, attribute, None):
                    before.append((module, attribute, hooks))
                    setattr(module, attribute, OrderedDict())
        yield
    finally:
        for module, attribute, hooks in before:
            setattr(module, attribute, hooks)
        for hooks, kept in zip(everywhere, global_hooks, strict=True):
            hooks.update(kept)

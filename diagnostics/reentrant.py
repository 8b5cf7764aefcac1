"""Activation checkpoints of the older kind, which hide parameters from ``torch.autograd.grad``.

``torch.utils.checkpoint(use_reentrant=True)`` differentiates by a backward pass of its own, into ``.grad``. Asked for
gradients any other way it refuses, or, where nothing before it trains, warns and gives zeros. Zeros would pass for
curvature, so both become one error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diagnostics.errors import DiagnosticsError


@contextmanager
def reentrant_checkpoints_refused() -> Iterator[None]:
    """Raise a DiagnosticsError when a reentrant checkpoint was run inside, whether it refused or only warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (RuntimeError, DiagnosticsError) as refusal:
            if "use_reentrant=True" in str(refusal) or any(map(_hides, caught)):
                raise _refusal() from refusal
            raise
    if any(map(_hides, caught)):
        raise _refusal()
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _hides(warning: warnings.WarningMessage) -> bool:
    return "None of the inputs have requires_grad=True" in str(warning.message)


def _refusal() -> DiagnosticsError:
    return DiagnosticsError(
        "the model uses reentrant activation checkpoints",
        given="torch.utils.checkpoint with use_reentrant=True, which hides parameters from torch.autograd.grad",
        expected="use_reentrant=False, or no checkpoints while measuring",
        attempt="model.gradient_checkpointing_disable() for Hugging Face models",
    )

"""The header of a run: what was trained, with what, and by which versions."""

from __future__ import annotations

import hashlib
import math
import platform
import sys
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from diagnostics import Objective
from diagnostics.stability.rules import unwrap_optimizer, wrappers_around
from probes.probe import Probe
from probes.run.reader import SCHEMA_VERSION
from probes.schedule import Schedule

DISTRIBUTION = "training-dynamics-diagnostics"

DEEPEST = 6
"""Levels of lists and mappings in a setting that are written down."""


def run_header(
    model: nn.Module,
    optimizer: Optimizer,
    objective: Objective | None,
    probes: Iterable[tuple[Probe, Schedule]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``run.json`` holds, as JSON values; the optimizer as it was given, in its wrappers."""
    tensor = next(model.parameters(), torch.empty(0))
    return {
        "schema_version": SCHEMA_VERSION,
        "id": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "versions": versions(),
        "device": device_name(tensor.device),
        "model": fingerprint(model) | {"not_in_optimizer": not_held(model, unwrap_optimizer(optimizer))},
        "optimizer": describe_optimizer(optimizer),
        "objective": None if objective is None else describe_objective(objective),
        "probes": [
            {"name": probe.name, "settings": _plain(probe.settings()), "schedule": schedule.text}
            for probe, schedule in probes
        ],
        "settings": _plain(settings),
    }


def describe_objective(objective: Objective) -> dict[str, Any]:
    """On how much data, in which mode, for how many parameters, and past how many running statistics."""
    return {
        "loss_terms": sum(objective.terms),
        "batches": len(objective.batches),
        "mode": objective.mode,
        "parameters": objective.num_parameters,
        "batch_norm": sum(
            isinstance(module, _BatchNorm) and module.running_mean is not None for module in objective.model.modules()
        ),
    }


def versions() -> dict[str, str]:
    """Of this package and what its numbers depend on."""
    try:
        own = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {
        DISTRIBUTION: own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Class, size, shapes, and a hash of names, shapes and dtypes: what must not change when a run is resumed."""
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in model.named_parameters()]
    return {
        "class": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "shapes": {name: shape for name, shape, _ in shapes},
        "hash": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
    }


def not_held(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The trainable parameters that the optimizer does not hold, by name: they never move."""
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    return [name for name, tensor in model.named_parameters() if tensor.requires_grad and id(tensor) not in held]


def imprints(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Sum and norm of tensors, by name, as text: other text later means that a tensor has moved."""
    named = dict(model.named_parameters())
    found = {}
    with torch.no_grad():
        for name in names:
            if name in named:
                tensor = named[name].detach()
                real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                norm = torch.linalg.vector_norm(real, dtype=torch.float64)
                found[name] = f"{real.sum(dtype=torch.float64).item()!r} {norm.item()!r}"
    return found


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Class and hyperparameters, group by group; and what is around it, from the outside in."""
    inner, around = unwrap_optimizer(optimizer), wrappers_around(optimizer)
    names = [*(name for name, _ in around), type(inner).__name__]
    described = {"class": " around ".join(names), "groups": describe_groups(inner.param_groups)}
    wrappers = [{"class": name, **_plain(settings)} for name, settings in around]
    return described | ({"wrappers": wrappers} if wrappers else {})


def describe_groups(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The hyperparameters of parameter groups as JSON values."""
    return [{key: _plain(value) for key, value in group.items() if key != "params"} for group in groups]


def device_name(device: torch.device) -> str:
    """The device as a person would call it."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)


def _plain(value: Any, depth: int = 0) -> Any:
    """Whatever it is, as strict JSON: numbers that JSON does not know, and things, by their text."""
    if isinstance(value, Tensor):
        readable = value.layout is torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)
        small = readable and value.numel() <= 16
        return _plain(value.tolist(), depth) if small else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, numpy.generic):
        return _plain(value.item(), depth)
    if isinstance(value, Mapping | tuple | list) and depth >= DEEPEST:
        # What a checkpoint holds may hold itself.
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _plain(part, depth + 1) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part, depth + 1) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, bool | int | float | str | None) else repr(value)

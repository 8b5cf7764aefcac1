"""Loading a task: the user's code that rebuilds an Objective, and perhaps an optimizer, from a checkpoint."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from diagnostics import DiagnosticsError, Objective

DEFAULT_NAME = "build"


def build_task(
    task: str, checkpoint: Mapping[str, Any], device: str | None = None
) -> tuple[Objective, Optimizer | None]:
    """Run the task's ``build(checkpoint)``.

    Args:
        task: ``"file.py"``, ``"file.py:name"`` or ``"package.module:name"``; the name is ``build`` by default.
        checkpoint: everything the file held, as it was loaded.
        device: where tensors that ``build`` makes are put; the build's own choice by default.

    Raises:
        DiagnosticsError: it cannot be found, fails, or returns something else.
    """
    build = _find(task)
    try:
        with nullcontext() if device is None else torch.device(device):
            built = build(dict(checkpoint))
    # The user's code may raise anything; what helps is where in their file.
    except Exception as problem:
        raise DiagnosticsError(f"task {task!r}: build(checkpoint) failed", given=_where(problem)) from problem
    objective, optimizer = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(objective, Objective) or not isinstance(optimizer, Optimizer | None):
        raise DiagnosticsError(
            f"task {task!r}: build(checkpoint) returned something else",
            given=type(built).__name__,
            expected="an Objective, or (Objective, torch optimizer)",
        )
    return objective, optimizer


def _find(task: str) -> Callable[[dict[str, Any]], Any]:
    place, _, name = task.partition(":") if task[1:3] != ":\\" else (task, "", "")
    name = name or DEFAULT_NAME
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except DiagnosticsError:
        raise
    # Importing runs the user's file.
    except Exception as problem:
        raise DiagnosticsError(f"task {task!r} cannot be imported", given=_where(problem)) from problem
    build = getattr(module, name, None)
    if not callable(build):
        raise DiagnosticsError(
            f"task {task!r} has no function {name!r}",
            expected=f"def {name}(checkpoint: dict) -> Objective | (Objective, Optimizer)",
        )
    return build  # type: ignore[no-any-return]


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise DiagnosticsError(
            f"task file {str(path)!r} does not exist", expected="a Python file that defines build(checkpoint)"
        )
    specification = importlib.util.spec_from_file_location(f"diagnose_task_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # A task file may import its neighbours, as a script could.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        sys.modules[specification.name] = module
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _where(problem: Exception) -> str:
    """The error in one line, with the last line of code that is not a library's."""
    frames = traceback.extract_tb(problem.__traceback__)
    theirs = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    place = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:300]}{place}"

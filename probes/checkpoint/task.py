"""Loading a task: the user's code that rebuilds an Objective, and perhaps an optimizer, from a checkpoint."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

import diagnostics
from diagnostics import DiagnosticsError, Objective
from probes.checkpoint.errors import printable

DEFAULT_NAME = "build"

_KEYS_SHOWN = 8

_NOT_THEIRS = (
    *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
    Path(diagnostics.__file__).parent,
    Path(__file__).parents[1],
)


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
    place, name = _split(task)
    where = nullcontext() if device is None else named_device(device)
    with _importable(place):
        build = _find(task, place, name)
        try:
            with where:
                built = build(dict(checkpoint))
        # The user's code may raise anything, exits included; what helps is where in their file.
        except (Exception, SystemExit) as problem:
            held = f"; the checkpoint holds {_keys(checkpoint)}" if isinstance(problem, KeyError) else ""
            raise DiagnosticsError(
                f"task {task!r}: {name}(checkpoint) failed", given=_where(problem) + held
            ) from problem
    objective, optimizer = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(objective, Objective) or not isinstance(optimizer, Optimizer | None):
        parts = ", ".join(type(part).__name__ for part in built) if isinstance(built, tuple) else ""
        raise DiagnosticsError(
            f"task {task!r}: {name}(checkpoint) returned something else",
            given=f"a tuple of ({parts})" if parts else type(built).__name__,
            expected="an Objective, or (Objective, torch optimizer)",
        )
    return objective, optimizer


def _split(task: str) -> tuple[str, str]:
    """File or module, and the function's name."""
    if task.endswith(".py") or ":" not in task:
        return task, DEFAULT_NAME
    place, _, name = task.rpartition(":")
    return place, name or DEFAULT_NAME


def named_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        DiagnosticsError: torch knows none.
    """
    try:
        return torch.device(name)
    except RuntimeError as problem:
        raise DiagnosticsError(
            "device is unknown", given=repr(name), expected="a torch device such as cpu or cuda:0"
        ) from problem


@contextmanager
def _importable(place: str) -> Iterator[None]:
    """What the task may import, for the while: a file its neighbours, as a script could; a module what is here."""
    is_file = place.endswith(".py")
    folder = str(Path(place).resolve().parent if is_file else Path.cwd())
    if not is_file and folder in sys.path:
        yield
        return
    sys.path.insert(0 if is_file else len(sys.path), folder)
    try:
        yield
    finally:
        # The task may have tidied up itself.
        with suppress(ValueError):
            sys.path.remove(folder)


def _find(task: str, place: str, name: str) -> Callable[[dict[str, Any]], Any]:
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except _NoFileError:
        raise
    # Importing runs the user's file.
    except (Exception, SystemExit) as problem:
        raise DiagnosticsError(f"task {task!r} cannot be imported", given=_where(problem)) from problem
    build = getattr(module, name, None)
    if not callable(build):
        raise DiagnosticsError(
            f"task {task!r} has no function {name!r}",
            expected=f"def {name}(checkpoint: dict) -> Objective | (Objective, Optimizer)",
        )
    return build  # type: ignore[no-any-return]


class _NoFileError(DiagnosticsError):
    """The task's file is missing; apart from what the file itself may raise."""


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise _NoFileError(
            f"task file {str(path)!r} does not exist", expected="a Python file that defines build(checkpoint)"
        )
    specification = importlib.util.spec_from_file_location(f"diagnose_task_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def _where(problem: BaseException) -> str:
    """The error in one line, with the last line of code that is the user's, not a library's."""
    frames = traceback.extract_tb(problem.__traceback__)
    theirs = [frame for frame in frames if _is_theirs(frame.filename)]
    # A syntax error says itself where it is.
    named = theirs and not isinstance(problem, SyntaxError)
    place = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if named else ""
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:300]}{place}"


def _keys(checkpoint: Mapping[str, Any]) -> str:
    shown = ", ".join(f"'{printable(key)}'" for key in list(checkpoint)[:_KEYS_SHOWN])
    more = len(checkpoint) - _KEYS_SHOWN
    return (shown or "nothing") + (f" and {more:,} more" if more > 0 else "")


def _is_theirs(filename: str) -> bool:
    if filename.startswith("<") or {"site-packages", "dist-packages"} & set(Path(filename).parts):
        return False
    return not any(Path(filename).is_relative_to(folder) for folder in _NOT_THEIRS)

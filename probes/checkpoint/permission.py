"""What a pickle may import: torch's own list of harmless names, and the names the user adds to it.

Torch keeps the list; it is asked, never copied, so a torch that allows more or less than today's is followed.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint

from probes.checkpoint.errors import CheckpointError, printable
from probes.checkpoint.scan import Name


def unsafe_names(names: Iterable[Name]) -> tuple[str, ...]:
    """Return those of `names` that `torch.load(weights_only=True)` would refuse, sorted.

    Torch answers that question only for a file, and only for the zip format and the oldest pickle instructions. So
    the names are put into such a file, in memory, whatever file they came from.

    Args:
        names: what a pickle imports.

    >>> unsafe_names([Name("torch._utils", "_rebuild_tensor_v2"), Name("os", "system")])
    ('os.system',)
    """
    plain, unspeakable = [], set()
    for name in names:
        if all(part.isidentifier() for part in str(name).split(".")):
            plain.append(name)
        else:
            unspeakable.add(str(name))
    pickle = "".join(f"c{name.module}\n{name.name}\n" for name in plain).encode()
    question = io.BytesIO()
    with zipfile.ZipFile(question, "w") as archive:
        archive.writestr("names/data.pkl", b"\x80\x02" + pickle + b".")
        archive.writestr("names/version", b"3\n")
    question.seek(0)
    return tuple(sorted({*get_unsafe_globals_in_checkpoint(question), *unspeakable}))


def imported(names: Sequence[str]) -> list[tuple[Callable[..., Any], str]]:
    """Import each dotted name and pair it with that name, as `torch.serialization.safe_globals` takes it.

    The pairing matters: `numpy.core.multiarray.scalar` in a file is found by the name in the file, even when the
    object has since moved.

    Args:
        names: dotted names, such as `argparse.Namespace`.

    Raises:
        CheckpointError: a name is not dotted or cannot be imported.

    >>> imported(["argparse.Namespace"])
    [(<class 'argparse.Namespace'>, 'argparse.Namespace')]
    """
    return [(_import(name), name) for name in names]


def _import(name: str) -> Any:
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise CheckpointError(
            f"{printable(name)!r} is not a name that can be allowed",
            given=repr(printable(name)),
            expected="a dotted name, module first",
            attempt="copy the name from the message that refused the file, such as argparse.Namespace",
        )
    module, attributes = ".".join(parts[:-1]), parts[-1:]
    try:
        while True:
            try:
                found: Any = importlib.import_module(module)
                break
            except ModuleNotFoundError as error:
                # `package.module.Class.Inner` is a class inside a class: its module is further to the left.
                if error.name is None or not f"{module}.".startswith(f"{error.name}.") or "." not in module:
                    raise
                module, _, attribute = module.rpartition(".")
                attributes.insert(0, attribute)
        for attribute in attributes:
            found = getattr(found, attribute)
    except MemoryError:
        raise
    # Importing runs a module of the user's, which may raise anything.
    except Exception as error:
        raise CheckpointError(
            f"{printable(name)} cannot be imported",
            given=f"{type(error).__name__}: {printable(error)}",
            expected="a name that Python can import here",
            attempt="install the package it belongs to, or run where your training code can be imported",
        ) from error
    return found

"""What can go wrong when a checkpoint is opened: it cannot be read, or it wants more than tensors."""

from __future__ import annotations

from diagnostics.errors import DiagnosticsError

_LONGEST = 100  # a name comes from the file, and a hostile one may be a megabyte long
_LISTED = 20


class CheckpointError(DiagnosticsError):
    """Raised for a file that cannot be read as a checkpoint.

    The message names the file, says what it is, what was expected, and what to try.
    """


class UnsafeCheckpointError(CheckpointError):
    """Raised for a pickle that wants to import or call something other than tensors and containers.

    Nothing was imported and nothing was called when this is raised.

    Attributes:
        globals: the dotted names the file asks for, sorted; empty when torch refuses the pickle for its instructions.
    """

    globals: tuple[str, ...]

    def __init__(
        self, what: str, *, globals: tuple[str, ...] = (), given: str = "", expected: str = "", attempt: str = ""
    ) -> None:
        super().__init__(what, given=given, expected=expected, attempt=attempt)
        self.globals = globals


def printable(text: object) -> str:
    r"""Return `text` on one line, without control characters and of bounded length, for use in a message.

    >>> printable("numpy.dtype"), printable("a\x1b[31m")
    ('numpy.dtype', 'a\\x1b[31m')
    """
    line = str(text)
    line = line if line.isprintable() else repr(line)[1:-1]
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def listed(names: tuple[str, ...]) -> str:
    """Return `names` as a comma-separated list that names at most twenty of them.

    >>> listed(("a", "b"))
    'a, b'
    """
    shown = ", ".join(printable(name) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"

"""A pickle read with a closed list of names: what is not on the list is neither imported nor looked up.

Two kinds of checkpoint hold a pickle that `torch.load(weights_only=True)` cannot read, and torch itself reads with all
its powers: the index of a distributed checkpoint (`.metadata`), and the modules of a TorchScript archive. Both need a
dozen names. Each is given something harmless in its place: records that only keep what is put into them, and functions
made for this one reading, so that a file that writes into them changes nothing that lasts.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probes.checkpoint.errors import UnsafeCheckpointError, listed
from probes.checkpoint.scan import Name, PickleScan, scan_pickle

Stand = Callable[[Name], Any]
"""What stands in for a name; None for a name that is not on the list."""


def record_class() -> type:
    """A class made anew, whose objects keep whatever a pickle puts into them, under the names it says.

    >>> kept = record_class()()
    >>> kept.__setstate__({"weight": 3})
    >>> vars(kept)
    {'weight': 3}
    """

    class Record:
        def __init__(self, *arguments: object) -> None:
            self.arguments = arguments

        def __setstate__(self, state: object) -> None:
            vars(self).pop("arguments", None)
            vars(self).update(state if isinstance(state, dict) else {"state": state})

        def __hash__(self) -> int:
            return id(self)

    return Record


def read_restricted(
    path: Path, what: str, data: bytes, stand: Stand, storage: Callable[[Any], Any] | None = None
) -> tuple[Any, PickleScan]:
    """Read a pickle in which every name has a stand-in.

    Args:
        path: the file it comes from, for the message.
        what: what the pickle is, for the message.
        data: the pickle.
        stand: the closed list.
        storage: makes a storage of the tuple that a pickle refers to it by; None where there should be none.

    Raises:
        UnsafeCheckpointError: it asks for other names. Nothing was imported and nothing called.
        ValueError: the bytes are no pickle.
    """
    scan = scan_pickle(io.BytesIO(data))
    refused = tuple(sorted({str(name) for name in scan.names if stand(name) is None}))
    if refused:
        raise UnsafeCheckpointError(
            f"{what} of {path.name} was refused before anything could run: it asks for {listed(refused)}",
            globals=refused,
            given=what,
            expected="names that torch itself writes there",
            attempt="save the model's state_dict() alone with torch.save; no option of this command allows names here",
        )
    return _Reader(io.BytesIO(data), stand, storage).load(), scan


# The reader written in Python keeps its memo in a dict; the one in C allocates as far as the file says.
class _Reader(pickle._Unpickler):
    def __init__(self, stream: io.BytesIO, stand: Stand, storage: Callable[[Any], Any] | None) -> None:
        super().__init__(stream)
        self._stand, self._storage = stand, storage
        self._given: dict[Name, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        wanted = Name(module, name)
        if wanted not in self._given:
            self._given[wanted] = self._stand(wanted)
        if self._given[wanted] is None:
            raise pickle.UnpicklingError(f"{wanted} is not allowed here")
        return self._given[wanted]

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("a reference to something outside the pickle")
        return self._storage(pid)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code} of the pickle registry is not allowed here")

"""What a pickle would do, read without doing it.

A pickle is a program for a stack machine. This runs that machine on symbols: strings, whole numbers, tuples and names
are followed, everything else is one opaque value, and nothing is ever imported, called or allocated. It answers two
questions before the file gets to answer them itself: which names does the file import, and how large does it claim
its tensors to be. The stack is followed, rather than names searched for, because since protocol 4 a name is taken
from the stack (STACK_GLOBAL), and a hostile file puts it there in pieces.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Protocol

_OPAQUE = object()
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"))
_EXTENSIONS = frozenset(("EXT1", "EXT2", "EXT4"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


class ByteStream(Protocol):
    """The part of a file that `pickletools` needs."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        ...

    def readline(self) -> bytes:
        """Return the bytes up to and with the next newline."""
        ...


@dataclass(frozen=True)
class Name:
    """A global that the pickle imports: `module` and `name` as they stand in the file."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class StorageClaim:
    """A storage that the pickle refers to: the key of its bytes, its class, and the number of elements it claims."""

    key: str
    kind: str
    elements: int


@dataclass(frozen=True)
class PickleScan:
    """The names a pickle imports and the storages it claims, in the order it does so."""

    names: tuple[Name, ...]
    storages: tuple[StorageClaim, ...]


def scan_pickle(stream: ByteStream) -> PickleScan:
    """Read one pickle from `stream`, up to its STOP, without executing it.

    Args:
        stream: a file at the beginning of a pickle; it is left just behind it. For a large file pass an `mmap`, whose
            `read` never allocates more than there is.

    Raises:
        ValueError: the bytes are no pickle.

    >>> import io, os, pickle
    >>> class Attack:
    ...     def __reduce__(self):
    ...         return os.getenv, ("HOME",)
    >>> [str(name) for name in scan_pickle(io.BytesIO(pickle.dumps(Attack()))).names]
    ['os.getenv']
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it reads from any ByteStream
        machine.step(opcode, argument)
    return PickleScan(tuple(machine.names), tuple(machine.storages))


class _Machine:
    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.names: dict[Name, None] = {}
        self.storages: dict[StorageClaim, None] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        if opcode.name in _PUTS or opcode.name == "MEMOIZE":
            if not self.stack:
                raise ValueError("a pickle that stores from an empty stack")
            self.memo[argument if isinstance(argument, int) else len(self.memo)] = self.stack[-1]
            return
        taken = self._take(opcode)
        if opcode.name in _GETS:
            self.stack.append(self.memo.get(argument, _OPAQUE) if isinstance(argument, int) else _OPAQUE)
        elif opcode.name in _TUPLES:
            self.stack.append(tuple(taken))
        elif opcode.name == "DUP":
            self.stack += (*taken, *taken)
        elif opcode.name in {"GLOBAL", "INST", "STACK_GLOBAL"} or opcode.name in _EXTENSIONS:
            name = _name(opcode, argument, taken)
            self.names[name] = None
            # INST calls what it names; the others leave the name on the stack.
            self.stack.append(_OPAQUE if opcode.name == "INST" else name)
        elif opcode.name == "BINPERSID":
            self._note_storage(taken[0])
            self.stack.append(_OPAQUE)
        elif opcode.name == "MARK":
            self.stack.append(pickletools.markobject)
        elif not opcode.stack_before and isinstance(argument, str | int) and opcode.name != "PERSID":
            self.stack += [argument] * len(opcode.stack_after)
        else:
            self.stack += [_OPAQUE] * len(opcode.stack_after)

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[object]:
        before = opcode.stack_before
        on_mark = opcode.name == "POP" and bool(self.stack) and self.stack[-1] is pickletools.markobject
        if pickletools.markobject not in before or on_mark:
            return self._pop(len(before))
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is pickletools.markobject:
                taken = self.stack[index + 1 :]
                del self.stack[index:]
                return self._pop(before.index(pickletools.markobject)) + taken
        raise ValueError(f"a pickle whose {opcode.name} has no MARK")

    def _pop(self, count: int) -> list[object]:
        if count > len(self.stack):
            raise ValueError("a pickle that takes more from its stack than it put there")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _note_storage(self, saved_id: object) -> None:
        # torch writes ("storage", class, key, location, elements[, view]); anything else is for torch to refuse.
        if not isinstance(saved_id, tuple) or len(saved_id) < 5 or not isinstance(saved_id[1], Name):
            return
        key, elements = saved_id[2], saved_id[4]
        if isinstance(key, str | int) and isinstance(elements, int):
            self.storages[StorageClaim(str(key), saved_id[1].name, elements)] = None


def _name(opcode: pickletools.OpcodeInfo, argument: object, taken: list[object]) -> Name:
    if opcode.name in _EXTENSIONS:
        return Name("copyreg", f"extension {argument}")
    if opcode.name == "STACK_GLOBAL":
        module, name = taken
        if isinstance(module, str) and isinstance(name, str):
            return Name(module, name)
        return Name("?", "a name that the file computes")
    module_text, _, name_text = str(argument).partition(" ")
    return Name(module_text, name_text)

"""A checkpoint folder of torch.distributed.checkpoint: an index (`.metadata`) and the files of each rank.

The index says of every tensor which pieces it was saved in, and of every piece where its bytes lie in which file; each
piece is a torch.save archive of its own. Torch reads the index with `pickle.load`. Here it is read with a closed list
of names, and the pieces with `weights_only=True`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.checkpoint.claims import check_records
from probes.checkpoint.errors import CheckpointError, UnsafeCheckpointError, listed, printable
from probes.checkpoint.permission import unsafe_names
from probes.checkpoint.restricted import read_restricted, record_class
from probes.checkpoint.scan import Name, scan_pickle

INDEX = ".metadata"

_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = frozenset(
    (
        *(f"{_METADATA}.{name}" for name in ("Metadata", "TensorStorageMetadata", "TensorProperties")),
        *(f"{_METADATA}.{name}" for name in ("ChunkStorageMetadata", "BytesStorageMetadata", "MetadataIndex")),
        *(f"{_METADATA}.{name}" for name in ("StorageMeta", "_MEM_FORMAT_ENCODING")),
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
        *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),
        "torch.serialization._get_layout",
        "torch.device",
    )
)
_LARGEST_INDEX = 1 << 28
SMALL = 1024
"""Tensors of at most so many numbers are read at once: a step is one of them."""


@dataclass(frozen=True)
class _Piece:
    path: Path
    start: int
    length: int
    offsets: tuple[int, ...]


def load_distributed(folder: Path) -> tuple[dict[str, Any], dict[int, Callable[[], Tensor]], tuple[Path, ...]]:
    """Open a distributed checkpoint.

    Args:
        folder: one with a `.metadata` in it.

    Returns:
        what was saved, nested as it was, with tensors without values in the place of large ones; how to read those, as
            `Streamed` takes it; and the files.

    Raises:
        UnsafeCheckpointError: the index or a piece asks for more than tensors and containers.
        CheckpointError: a file is missing, or not what the index says.
    """
    index = _index(folder)
    kinds = _entries(index, "state_dict_metadata")
    places = index.planner_data if isinstance(getattr(index, "planner_data", None), dict) else {}
    pieces: dict[str, list[_Piece]] = {}
    for key, stored in _entries(index, "storage_data").items():
        pieces.setdefault(str(key.fqn), []).append(_piece(folder, key, stored))
    raw: dict[str, Any] = {}
    sources: dict[int, Callable[[], Tensor]] = {}
    for name, kind in kinds.items():
        if not pieces.get(name):
            raise _contradiction(folder, f"no place is given for {printable(name)}")
        value: Any
        if hasattr(kind, "chunks"):
            read = partial(_assembled, folder, str(name), _sizes(kind.size), kind.properties, pieces[name])
            if _numbers(_sizes(kind.size)) > SMALL:
                value = torch.empty(_sizes(kind.size), dtype=_dtype(folder, kind.properties), device="meta")
                sources[id(value)] = read
            else:
                value = read()
        else:
            value = _loaded(pieces[name][0])
        _put(raw, places.get(name) or (name,), value)
    files = tuple(dict.fromkeys(piece.path for some in pieces.values() for piece in some))
    return raw, sources, (folder / INDEX, *files)


def _index(folder: Path) -> Any:
    path = folder / INDEX
    if path.stat().st_size > _LARGEST_INDEX:
        raise _contradiction(folder, f"an index of {path.stat().st_size:,} bytes")
    index, _ = read_restricted(path, "the index of a distributed checkpoint", path.read_bytes(), _stand)
    return index


def _stand(name: Name) -> Any:
    text = str(name)
    if text in _RECORDS:
        return record_class()
    if text == "torch.Size":
        return tuple
    if text == "collections.OrderedDict":
        return dict
    found = getattr(torch, name.name, None) if name.module == "torch" else None
    return found if isinstance(found, torch.dtype) else None


def _entries(index: Any, name: str) -> dict[Any, Any]:
    found = getattr(index, name, None)
    if not isinstance(found, dict):
        raise ValueError(f"an index without {name}")
    return found


def _piece(folder: Path, key: Any, stored: Any) -> _Piece:
    name, start, length = str(stored.relative_path), stored.offset, stored.length
    if getattr(stored, "transform_descriptors", None):
        raise CheckpointError(
            f"{folder.name} is a distributed checkpoint that was saved compressed",
            given=f"pieces transformed by {printable(stored.transform_descriptors)}",
            expected="pieces as torch.save writes them",
            attempt="save it again without extensions",
        )
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
        raise CheckpointError(
            f"{folder.name} is a distributed checkpoint of which a file is missing",
            given=f"no file {printable(name)}, which its index refers to",
            expected="the files of every rank in one folder",
            attempt="copy the folder again, with the files that other machines wrote",
        )
    if not (isinstance(start, int) and isinstance(length, int) and 0 <= start <= start + length <= path.stat().st_size):
        raise _contradiction(folder, f"{printable(name)} is {path.stat().st_size:,} bytes and should hold more")
    return _Piece(path, start, length, _sizes(getattr(key, "offset", None) or ()))


def _loaded(piece: _Piece) -> Any:
    with piece.path.open("rb") as file:
        file.seek(piece.start)
        data = file.read(piece.length)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in held.values()):
            raise ValueError("a piece that was compressed afterwards")
        scan = scan_pickle(io.BytesIO(archive.read(held["data.pkl"])))
    check_records(piece.path, held, scan.storages)
    refused = unsafe_names(scan.names)
    if refused:
        raise UnsafeCheckpointError(
            f"{piece.path.name} was refused before anything that is not allowed could run: "
            f"it asks for {listed(refused)}",
            globals=refused,
            given="a piece of a distributed checkpoint",
            expected="tensors, numbers, strings, lists and dicts only",
            attempt="save the model's state_dict() alone with torch.distributed.checkpoint",
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _assembled(folder: Path, name: str, size: tuple[int, ...], properties: Any, pieces: list[_Piece]) -> Tensor:
    """One tensor of its pieces."""
    parts = [(piece.offsets or (0,) * len(size), _loaded(piece)) for piece in pieces]
    dtype = _dtype(folder, properties)
    if not all(isinstance(part, Tensor) and part.dtype == dtype and part.ndim == len(size) for _, part in parts):
        raise _contradiction(folder, f"{printable(name)} is no tensor of {len(size)} axes")
    if sum(part.numel() for _, part in parts) != _numbers(size):
        raise _contradiction(folder, f"the pieces of {printable(name)} do not make up a tensor of shape {size}")
    if len(parts) == 1:
        only: Tensor = parts[0][1].detach()
        return only.reshape(size)
    tensor = torch.empty(size, dtype=dtype)
    for offsets, part in parts:
        place = tensor[tuple(slice(first, first + length) for first, length in zip(offsets, part.shape, strict=True))]
        if place.shape != part.shape:
            raise _contradiction(folder, f"a piece of {printable(name)} lies outside of it")
        place.copy_(part.detach())
    return tensor


def _put(raw: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Put a value where it was: dicts by their keys, lists by their places."""
    place: Any = raw
    for key, following in pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(place, list):
            place.extend({} for _ in range(key + 1 - len(place)) if key < SMALL)
            place[key] = place[key] or empty
            place = place[key]
        else:
            place = place.setdefault(key, empty)
    if isinstance(place, list):
        place.extend(None for _ in range(path[-1] + 1 - len(place)) if path[-1] < SMALL)
    place[path[-1]] = value


def _sizes(size: Any) -> tuple[int, ...]:
    sizes = tuple(size)
    if not all(isinstance(one, int) and one >= 0 for one in sizes):
        raise ValueError("a shape that is none")
    return sizes


def _numbers(size: tuple[int, ...]) -> int:
    count = 1
    for one in size:
        count *= one
    return count


def _dtype(folder: Path, properties: Any) -> torch.dtype:
    # A record keeps a state that is no dict under this name: dtype, layout and what torch no longer looks at.
    found = properties.state[0] if hasattr(properties, "state") else getattr(properties, "dtype", None)
    if not isinstance(found, torch.dtype):
        raise _contradiction(folder, "a tensor without a dtype")
    return found


def _contradiction(folder: Path, given: str) -> CheckpointError:
    return CheckpointError(
        f"{folder.name} is a distributed checkpoint that contradicts itself",
        given=given,
        expected="an index and files that belong together",
        attempt="copy the folder again, or save the checkpoint again",
    )

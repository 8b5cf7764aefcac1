"""The weights of a program, without the program: TorchScript and torch.export archives.

Both are zip files that hold code beside tensors, and torch opens them by loading the code. The tensors can be had
without: a TorchScript archive pickles its modules as records of attributes, a torch.export archive lists name, dtype
and shape of each weight in JSON. Bytes are mapped from the file and not read before they are used.
"""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.checkpoint.archive import data_offset, members, read_record
from probes.checkpoint.claims import check_records
from probes.checkpoint.errors import CheckpointError, printable
from probes.checkpoint.restricted import read_restricted, record_class
from probes.checkpoint.scan import Name

_STORAGES = {
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "BoolStorage": torch.bool,
    "ShortStorage": torch.int16,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "IntStorage": torch.int32,
    "FloatStorage": torch.float32,
    "LongStorage": torch.int64,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# The numbers that torch.export writes for dtypes, its schema's ScalarType.
_EXPORTED = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
}
_WEIGHTS = "data/weights/"
_STRIDED = 7


def torchscript_weights(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, by their names in its state dict.

    Args:
        path: a file that `sniff` called a TorchScript archive.

    Raises:
        CheckpointError: it is damaged, or holds attributes of a kind that cannot be read without its code.
    """
    held = _by_name(path)
    mapped = _Mapped(path)

    def stand(name: Name) -> Any:
        if str(name) == "torch._utils._rebuild_tensor_v2":
            return lambda storage, offset, size, stride, *rest: mapped.view(
                storage[0], storage[1], offset, size, stride
            )
        if name.module.split(".")[0] == "__torch__":
            return record_class()
        if str(name) == "collections.OrderedDict":
            return OrderedDict
        if name.module == "torch.jit._pickle":
            # Lists of numbers and of tensors, and the marks of their types.
            return lambda value, *rest: value
        return _STORAGES.get(name.name) if name.module == "torch" else None

    def storage(pid: Any) -> tuple[zipfile.ZipInfo, torch.dtype]:
        _, dtype, key, *_ = pid
        return held[f"data/{key}"], dtype

    data = read_record(path, held["data.pkl"])
    module, scan = read_restricted(path, "the module pickle", data, stand, storage)
    check_records(path, held, scan.storages)
    return dict(_attributes("", module, set()))


def exported_weights(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a torch.export archive.

    Args:
        path: a file that `sniff` called a torch.export archive.

    Raises:
        CheckpointError: it is of the older layout, which holds its weights as another archive inside.
    """
    held = _by_name(path)
    lists = [name for name in held if name.startswith(_WEIGHTS) and name.endswith("_weights_config.json")]
    if not lists:
        raise CheckpointError(
            f"{path.name} is a torch.export archive without a list of its weights",
            given=f"no record {_WEIGHTS}..._weights_config.json",
            expected="the layout that torch.export.save writes today",
            attempt="torch.save(torch.export.load(path).state_dict, 'weights.pt') in an environment that trusts it",
        )
    mapped = _Mapped(path)
    weights: dict[str, Tensor] = {}
    for name in lists:
        for weight, entry in json.loads(read_record(path, held[name]))["config"].items():
            meta = entry["tensor_meta"]
            dtype = _EXPORTED.get(meta["dtype"]) if meta and meta["layout"] == _STRIDED else None
            if dtype is None or entry["use_pickle"]:
                # A tensor of a subclass is pickled; a pickle inside would need trust.
                continue
            size, stride = ([side["as_int"] for side in meta[key]] for key in ("sizes", "strides"))
            record = held[_WEIGHTS + entry["path_name"]]
            weights[weight] = mapped.view(record, dtype, meta["storage_offset"]["as_int"], size, stride)
    return weights


def _by_name(path: Path) -> dict[str, zipfile.ZipInfo]:
    return {entry.filename.partition("/")[2]: entry for entry in members(path)}


class _Mapped:
    """Tensors that are views of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def view(self, record: zipfile.ZipInfo, dtype: torch.dtype, offset: int, size: Any, stride: Any) -> Tensor:
        sizes, strides = tuple(size), tuple(stride)
        numbers = (offset, *sizes, *strides)
        if record.compress_type != zipfile.ZIP_STORED or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError(f"record {printable(record.filename)} cannot be mapped")
        empty = 0 in sizes
        reach = 0 if empty else offset + 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if reach * dtype.itemsize > record.file_size:
            raise ValueError(f"a tensor of shape {sizes} is larger than its record {printable(record.filename)}")
        start = data_offset(self._path, record)
        part = self._bytes[start : start + record.file_size]
        if part.data_ptr() % dtype.itemsize:
            part = part.clone()
        return torch.empty(0, dtype=dtype).set_(part, offset, sizes, strides)


def _attributes(prefix: str, module: object, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    # A module may hold its parent; each is looked into once.
    waiting = [(prefix, module)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen or not hasattr(module, "__dict__") or isinstance(module, Mapping):
            continue
        seen.add(id(module))
        inside = []
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            else:
                inside.append((f"{prefix}{name}.", value))
        waiting += reversed(inside)

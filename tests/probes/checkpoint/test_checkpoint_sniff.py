"""Every kind of file is named from its bytes, whatever it is called, and nothing else is taken for a checkpoint."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from probes.checkpoint import CheckpointError, Format, load_checkpoint, sniff

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3)}


def _numpy(save, array) -> bytes:
    stream = io.BytesIO()
    save(stream, array)
    return stream.getvalue()


def _tar(*names_and_path) -> None:
    *names, path = names_and_path
    with tarfile.open(path, "w") as archive:
        for name in names or ["pickle"]:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))


def _zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


WRITERS = {
    Format.TORCH_ZIP: lambda path: torch.save(WEIGHTS, path),
    Format.TORCH_LEGACY: lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False),
    Format.SAFETENSORS: lambda path: save_file(WEIGHTS, path),
    Format.PICKLE: lambda path: path.write_bytes(pickle.dumps({"a": 1})),
}

FOREIGN = {
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "a numpy array": lambda path: path.write_bytes(_numpy(np.save, np.ones(3))),
    "a numpy .npz archive": lambda path: path.write_bytes(_numpy(np.savez, np.ones(3))),
    "a gzip file": lambda path: path.write_bytes(gzip.compress(b"weights")),
    "a tar archive": _tar,
    "a tar archive from torch.save before torch 0.1.10": partial(_tar, "sys_info", "pickle", "tensors", "storages"),
    "an ONNX model": lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0"),
    "a zip archive, but not one from torch.save": lambda path: _zip(path, "a.txt", "b/c.txt"),
    "a Keras archive": lambda path: _zip(path, "config.json", "model.weights.h5"),
    "a JSON text": lambda path: path.write_text('{"weight": [1, 2]}'),
    "a text file": lambda path: path.write_text("(not a pickle, though it starts and ends like one)."),
    "a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>"),
    "zero bytes only": lambda path: path.write_bytes(bytes(4096)),
    "not a checkpoint": lambda path: path.write_bytes(b"\x01\x02\x03\xff" * 20),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["last.pt", "model.bin", "model.safetensors", "noextension"])
def test_a_format_is_known_by_its_bytes_and_not_by_its_name(tmp_path, kind, name):
    path = tmp_path / name
    WRITERS[kind](path)
    assert sniff(path) is kind


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_known_in_every_protocol_also_those_without_a_header(tmp_path, protocol):
    path = tmp_path / "state.pkl"
    path.write_bytes(pickle.dumps({"a": [1, 2.5, "text", b"bytes"]}, protocol=protocol))
    assert sniff(path) is Format.PICKLE


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_legacy_stream_is_known_in_every_protocol(tmp_path, protocol):
    path = tmp_path / "old.pt"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert sniff(path) is Format.TORCH_LEGACY


@pytest.mark.parametrize("what", FOREIGN)
def test_another_file_is_called_by_its_name(tmp_path, what):
    path = tmp_path / "last.pt"
    FOREIGN[what](path)
    with pytest.raises(CheckpointError, match=what) as caught:
        load_checkpoint(path)
    assert "last.pt" in str(caught.value)
    assert "expected: " in str(caught.value)


def test_a_path_that_is_no_readable_file_is_one_clear_error(tmp_path, monkeypatch):
    """Missing, folder, pipe (which would block when opened), an impossible path, and no permission."""
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path / "missing.pt", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / ("x" * 5000), "cannot be opened"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    path = tmp_path / "secret.pt"
    torch.save(WEIGHTS, path)

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # root may read everything, so the mode bits alone prove nothing
    with pytest.raises(CheckpointError, match="may not be read"):
        load_checkpoint(path)


def test_a_zip_without_its_end_is_called_truncated(tmp_path):
    path = tmp_path / "last.pt"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="truncated zip archive"):
        sniff(path)

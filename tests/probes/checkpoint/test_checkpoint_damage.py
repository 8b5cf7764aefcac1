"""A file that was cut or has bytes changed gives a checkpoint or a CheckpointError, and never anything else."""

import random

import pytest
import torch
from safetensors.torch import save_file

from probes.checkpoint import Checkpoint, CheckpointError, load_checkpoint

TENSORS = {
    "first.weight": torch.arange(24.0).reshape(4, 6),
    "first.bias": torch.ones(4, dtype=torch.bfloat16),
    "steps": torch.tensor(3),
    "none": torch.empty(0, 2),
}
WRITERS = {
    "zip": lambda path: torch.save({"model": TENSORS, "step": 3}, path),
    "legacy": lambda path: torch.save({"model": TENSORS, "step": 3}, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: save_file(TENSORS, path),
}


@pytest.fixture(params=WRITERS)
def whole(request, tmp_path):
    path = tmp_path / "last.pt"
    WRITERS[request.param](path)
    return path.read_bytes()


def _open(tmp_path, data) -> Checkpoint | None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(data)
    try:
        return load_checkpoint(path)
    except CheckpointError:
        return None


def test_the_whole_file_opens_bit_for_bit(tmp_path, whole):
    checkpoint = _open(tmp_path, whole)
    assert checkpoint is not None
    assert checkpoint.parameters.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert checkpoint.parameters[name].dtype is tensor.dtype
        assert torch.equal(checkpoint.parameters[name], tensor)


def test_a_cut_at_any_offset_is_a_checkpoint_error(tmp_path, whole):
    """No prefix of a file is taken for the whole: weights are never silently missing."""
    offsets = {*range(0, len(whole), max(1, len(whole) // 400)), *range(len(whole) - 60, len(whole)), *range(60)}
    assert [offset for offset in sorted(offsets) if _open(tmp_path, whole[:offset]) is not None] == []


def test_a_hole_in_the_middle_leaks_no_other_error(tmp_path, whole):
    for offset in range(0, len(whole) - 16, max(1, len(whole) // 150)):
        _open(tmp_path, whole[:offset] + bytes(16) + whole[offset + 16 :])
        _open(tmp_path, whole[:offset] + whole[offset + 16 :])


def test_changed_bytes_leak_no_other_error(tmp_path, whole):
    """Four hundred random changes of one to three bytes, from a fixed seed."""
    generator = random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        _open(tmp_path, bytes(data))


def test_changed_bytes_in_the_pickle_leak_no_other_error(tmp_path, whole):
    """The first kilobyte holds the pickle or the header in all three formats; there every byte means something."""
    generator = random.Random(1)
    for _ in range(400):
        data = bytearray(whole)
        data[generator.randrange(min(1024, len(data)))] = generator.randrange(256)
        _open(tmp_path, bytes(data))


def test_a_legacy_stream_that_claims_more_than_the_file_holds_is_refused_before_allocation(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"weight": torch.ones(100_000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="claim 400,000 bytes in a file of 5,000"):
        load_checkpoint(path)

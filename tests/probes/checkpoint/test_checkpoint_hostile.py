"""A hostile file gets nothing run, nothing allocated and one clear error.

Each payload would create a file if it ran; the test then looks for that file.
"""

import builtins
import collections
import os
import pickle
import zipfile

import pytest
import torch

from probes.checkpoint import CheckpointError, UnsafeCheckpointError, load_checkpoint


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _payloads(mark):
    touch = f"touch {mark}"
    return {
        "posix.system": Call(os.system, touch),
        "builtins.eval": Call(builtins.eval, f"__import__('os').system({touch!r})"),
        "builtins.exec": Call(builtins.exec, f"open({str(mark)!r}, 'w')"),
        "posix.mkdir": Call(os.mkdir, str(mark)),
        "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, touch))),
    }


NAMES = tuple(_payloads("mark"))


def _save_nested(payload, path, container):
    hidden = {"model": {"weight": torch.ones(2)}, "extra": [{"deep": (payload,)}]}
    if container == "zip":
        torch.save(hidden, path)
    elif container == "legacy":
        torch.save(hidden, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(hidden["extra"], protocol=int(container)))


@pytest.mark.parametrize("container", ["zip", "legacy", "0", "1", "2", "3", "4", "5"])
@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_named_and_not_run(tmp_path, name, container):
    mark, path = tmp_path / "mark", tmp_path / "last.pt"
    _save_nested(_payloads(mark)[name], path, container)
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert name in caught.value.globals
    assert name in str(caught.value)
    assert "--trust" in str(caught.value)
    assert not mark.exists()


def test_a_call_of_a_call_is_named_and_not_run(tmp_path):
    """`getattr(__import__('os'), 'system')(...)`: the function itself comes from a nested reduce."""
    mark, path = tmp_path / "mark", tmp_path / "last.pt"
    system = b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR"
    path.write_bytes(system + b"(S'touch " + str(mark).encode() + b"'\ntR.")
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.globals == ("builtins.__import__", "builtins.getattr")
    assert not mark.exists()


def test_the_payloads_would_run_under_trust(tmp_path):
    """The proof that the tests above prove something."""
    mark, path = tmp_path / "mark", tmp_path / "last.pt"
    _save_nested(_payloads(mark)["posix.system"], path, "zip")
    load_checkpoint(path, trust=True)
    assert mark.exists()


def test_text_pickle_written_by_hand_is_not_run(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "last.pt"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.globals == ("os.system",)
    assert not mark.exists()


def test_a_name_put_together_on_the_stack_is_seen(tmp_path):
    """Protocol 4 takes names from the stack; here they come from the memo, in another order, past a decoy."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94\x8c\x05decoy000h\x01h\x00\x93\x8c\x01x\x85R.")
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.globals == ("os.system",)


def test_a_name_that_the_file_computes_is_refused_too(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"\x80\x04K\x01K\x02\x93.")
    with pytest.raises(UnsafeCheckpointError, match="a name that the file computes"):
        load_checkpoint(path)


def test_all_names_are_listed_and_not_only_the_first(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"a": Call(os.system, "x"), "b": Call(builtins.eval, "x"), "c": Call(os.getcwd)}, path)
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.globals == ("builtins.eval", "posix.getcwd", "posix.system")


def test_control_characters_of_the_file_do_not_reach_the_terminal(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"c\x1b[2Jos\nsystem\n.")
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()


def test_a_pickle_named_safetensors_is_not_handed_on_by_its_name(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="named like a safetensors file"):
        load_checkpoint(path)


class Forged:
    """Pickles as a tensor over `storage` of a shape and stride of the forger's choice."""

    def __init__(self, shape, stride):
        self.arguments = (torch.ones(1)._typed_storage(), 0, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("stride", [0, 1])
def test_a_shape_far_beyond_the_stored_bytes_is_refused(tmp_path, zipped, stride):
    """64 TiB claimed in a file of a kilobyte: by a stride of zero, or by lengthening the storage."""
    path = tmp_path / "last.pt"
    torch.save({"weight": Forged((1 << 44,), (stride,))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def _repack(path, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in change(entries):
            archive.writestr(name, data)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"a": torch.ones(1000), "b": torch.zeros(10)}, path)
    return path


def test_a_missing_record_is_named(saved):
    _repack(saved, lambda entries: [entry for entry in entries if not entry[0].endswith("data/1")])
    with pytest.raises(CheckpointError, match="missing record"):
        load_checkpoint(saved)


def test_a_record_shorter_or_longer_than_its_tensor_is_refused(saved):
    """Torch would read the bytes of the next record as weights, and say nothing."""
    _repack(saved, lambda entries: [(name, data[:-4] if name.endswith("data/0") else data) for name, data in entries])
    with pytest.raises(CheckpointError, match="claims 4,000 bytes in record data/0, which holds 3,996"):
        load_checkpoint(saved)


def test_an_archive_repacked_without_compression_still_opens(saved):
    _repack(saved, lambda entries: entries)
    assert torch.equal(load_checkpoint(saved).parameters["a"], torch.ones(1000))


def test_a_compressed_archive_is_refused_before_it_unfolds(saved):
    zeros = bytes(1 << 24)
    _repack(saved, lambda entries: [*entries, ("last/data/2", zeros)], zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed afterwards"):
        load_checkpoint(saved)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(saved):
    _repack(saved, lambda entries: [*entries, entries[0]])
    with pytest.raises(CheckpointError, match="two records of the same name"):
        load_checkpoint(saved)


def test_a_length_of_exabytes_in_a_pickle_is_an_error_and_no_allocation(tmp_path):
    path = tmp_path / "last.pkl"
    path.write_bytes(b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x.")
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_dict_that_contains_itself_is_searched_once(tmp_path):
    """With depth-first search and no memory of where it has been, thirty such keys would take for ever."""
    path, loop = tmp_path / "last.pt", {}
    loop.update({f"key{index}": loop for index in range(30)}, weight=torch.ones(2))
    torch.save(loop, path)
    assert list(load_checkpoint(path).parameters) == ["weight"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_and_a_full_memory_pass(saved, monkeypatch, error):
    def raises(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", raises)
    with pytest.raises(error):
        load_checkpoint(saved)

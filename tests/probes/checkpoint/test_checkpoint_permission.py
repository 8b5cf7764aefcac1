"""What the user allows is allowed, that and nothing else, and only for that one file."""

import argparse
import collections
import pickle

import numpy as np
import pytest
import torch

from probes.checkpoint import CheckpointError, UnsafeCheckpointError, load_checkpoint
from probes.checkpoint.permission import unsafe_names
from probes.checkpoint.scan import Name

WEIGHTS = {"w": torch.ones(2)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_an_allowed_name_is_loaded_and_forgotten_after(tmp_path, zipped):
    path = tmp_path / "last.pt"
    content = {"model": WEIGHTS, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.globals == ("argparse.Namespace",)
    assert "--allow-global" in str(caught.value)
    assert load_checkpoint(path, allow=["argparse.Namespace"]).raw["args"].lr == 0.1
    with pytest.raises(UnsafeCheckpointError):
        load_checkpoint(path)


def test_following_the_messages_opens_a_file_with_a_numpy_number(tmp_path):
    """The last name is made while loading and stands nowhere in the file; the refusal still names it."""
    path, allow = tmp_path / "last.pt", []
    torch.save({"model": WEIGHTS, "best": np.float64(0.9)}, path)
    for _ in range(3):
        try:
            checkpoint = load_checkpoint(path, allow=allow)
            break
        except UnsafeCheckpointError as refused:
            allow += refused.globals
    assert checkpoint.raw["best"] == 0.9


def test_a_class_inside_a_class_can_be_allowed():
    """Its module is not all but the last of its parts."""
    from probes.checkpoint.permission import imported

    [(found, name)] = imported(["tarfile.TarInfo.frombuf"])
    assert callable(found)
    assert name == "tarfile.TarInfo.frombuf"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Namespace", "not a name that can be allowed"),
        ("argparse;import os", "not a name that can be allowed"),
        ("argparse.", "not a name that can be allowed"),
        ("no_such_package.Thing", "cannot be imported"),
        ("argparse.NoSuchThing", "cannot be imported"),
    ],
)
def test_a_name_that_cannot_be_allowed_is_one_clear_error(tmp_path, name, said):
    path = tmp_path / "last.pt"
    torch.save(WEIGHTS, path)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path, allow=[name])


def test_a_module_that_fails_when_imported_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "last.pt"
    torch.save(WEIGHTS, path)
    with pytest.raises(CheckpointError, match="ZeroDivisionError"):
        load_checkpoint(path, allow=["broken_module.Thing"])


def test_the_shell_cannot_be_allowed_by_name(tmp_path):
    """Torch refuses os and sys even when they are allowed; so do we, with the same kind of error."""
    path = tmp_path / "last.pt"

    class Shell:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'mark'}",)

    torch.save({"w": Shell()}, path)
    with pytest.raises(UnsafeCheckpointError, match="torch never allows") as caught:
        load_checkpoint(path, allow=["posix.system"])
    assert caught.value.globals == ("posix.system",)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_newer_pickle_protocol_is_refused_with_its_reason(tmp_path, zipped):
    path = tmp_path / "last.pt"
    torch.save(WEIGHTS, path, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match="pickle_protocol=2"):
        load_checkpoint(path)
    assert torch.equal(load_checkpoint(path, trust=True).parameters["w"], torch.ones(2))


def test_a_bare_pickle_opens_with_trust_alone(tmp_path):
    """Its tensors come from a function that unpickles again without limits, so allowing that one name is no less."""
    path = tmp_path / "state.pkl"
    path.write_bytes(pickle.dumps(WEIGHTS))
    for allow in ([], ["torch.storage._load_from_bytes"]):
        with pytest.raises(UnsafeCheckpointError) as caught:
            load_checkpoint(path, allow=allow)
        assert caught.value.globals == ("torch.storage._load_from_bytes",)
        assert "--allow-global" not in str(caught.value)
    assert torch.equal(load_checkpoint(path, trust=True).parameters["w"], torch.ones(2))


def test_a_class_that_is_gone_is_one_clear_error_under_trust(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"\x80\x02cmy_training_script\nModel\nq\x00)\x81q\x01.")
    with pytest.raises(CheckpointError, match="my_training_script"):
        load_checkpoint(path, trust=True)


def test_an_error_inside_trusted_code_is_one_clear_error(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"\x80\x02cbuiltins\nint\nX\x03\x00\x00\x00abc\x85R.")
    with pytest.raises(CheckpointError, match="ValueError"):
        load_checkpoint(path, trust=True)


def test_torchs_own_list_is_asked_and_its_old_names_are_understood():
    asked = [
        Name("collections", "OrderedDict"),
        Name("torch", "FloatStorage"),
        Name("torch", "float8_e5m2"),
        Name("__builtin__", "set"),
        Name("__builtin__", "eval"),
        Name("os\nposix", "system"),
    ]
    assert unsafe_names(asked) == ("builtins.eval", "os\nposix.system")
    assert unsafe_names([]) == ()


def test_counters_and_ordered_dicts_need_no_permission(tmp_path):
    path = tmp_path / "last.pt"
    torch.save(
        {"model": collections.OrderedDict(WEIGHTS), "seen": collections.Counter("aab"), "dtype": torch.half}, path
    )
    assert load_checkpoint(path).raw["seen"]["a"] == 2

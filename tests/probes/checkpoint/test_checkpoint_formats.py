"""Every format that people have is opened: the same weights come back from each, and nothing in it is executed."""

import io
import json
import os
import pickle
import re
import warnings
import zipfile
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from probes.checkpoint import CheckpointError, Format, UnsafeCheckpointError, load_checkpoint, sniff
from probes.checkpoint.examine import examine
from reports import Report


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Linear(40, 40), nn.Linear(40, 2))


@pytest.fixture(scope="module")
def optimizer(model):
    adam = torch.optim.AdamW(model.parameters())
    for _ in range(4):
        model(torch.randn(8, 3)).square().sum().backward()
        adam.step()
    return adam


def _jit(model, optimizer, path):
    torch.jit.save(torch.jit.script(model), path)


def _export(model, optimizer, path):
    torch.export.save(torch.export.export(model, (torch.ones(4, 3),)), path)


def _parts(model):
    items = [(name, tensor.contiguous()) for name, tensor in model.state_dict().items()]
    return {"one": dict(items[:4]), "two": dict(items[4:])}


def _index(path, parts, ending):
    where = {name: f"{part}{ending}" for part, tensors in parts.items() for name in tensors}
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    (path / f"{stem}{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _sharded_safetensors(model, optimizer, path):
    path.mkdir()
    for part, tensors in _parts(model).items():
        save_file(tensors, path / f"{part}.safetensors")
    _index(path, _parts(model), ".safetensors")


def _sharded_bin(model, optimizer, path):
    path.mkdir()
    for part, tensors in _parts(model).items():
        torch.save(tensors, path / f"{part}.bin")
    _index(path, _parts(model), ".bin")


def _huggingface(model, optimizer, path):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["TinyForClassification"]}))
    save_file(model.state_dict(), path / "model.safetensors", metadata={"format": "pt"})


def _trainer(model, optimizer, path):
    path.mkdir()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), path / "optimizer.pt")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 4, "epoch": 1.0}))


def _accelerate(model, optimizer, path):
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    torch.save(optimizer.state_dict(), path / "optimizer.bin")
    torch.save({"last_epoch": 4}, path / "scheduler.bin")
    (path / "random_states_0.pkl").write_bytes(pickle.dumps({"step": 4, "random": Call(os.getcwd)}))


def _distributed(model, optimizer, path):
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 4}
    distributed.save(content, checkpoint_id=path, no_dist=True)


FORMATS = {
    "state dict": lambda model, optimizer, path: torch.save(model.state_dict(), path),
    "training dict": lambda model, optimizer, path: torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 4}, path
    ),
    "legacy": lambda model, optimizer, path: torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda model, optimizer, path: save_file(model.state_dict(), path),
    "TorchScript": _jit,
    "torch.export": _export,
    "sharded safetensors": _sharded_safetensors,
    "sharded bin": _sharded_bin,
    "Hugging Face": _huggingface,
    "Trainer": _trainer,
    "accelerate": _accelerate,
    "distributed": _distributed,
}
WITH_OPTIMIZER = ("training dict", "Trainer", "accelerate", "distributed")


def _written(name, model, optimizer, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FORMATS[name](model, optimizer, path)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_weights_come_back_from_every_format(tmp_path, model, optimizer, name):
    checkpoint = load_checkpoint(_written(name, model, optimizer, tmp_path / "last"))
    expected = model.state_dict()
    assert set(checkpoint.parameters) == set(expected)
    assert all(torch.equal(checkpoint.parameters[key], tensor) for key, tensor in expected.items())
    if name in WITH_OPTIMIZER:
        states = {int(key): entry for key, entry in checkpoint.optimizer["state"].items()}
        for key, entry in optimizer.state_dict()["state"].items():
            assert torch.equal(states[key]["exp_avg"], entry["exp_avg"])
        assert checkpoint.step == 4
        assert float(checkpoint.optimizer["param_groups"][0]["lr"]) == 1e-3


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_examined(tmp_path, model, optimizer, name):
    run = examine(_written(name, model, optimizer, tmp_path / "last"))
    expected = float(torch.linalg.vector_norm(model[2].weight.detach().double()))
    assert run.series("weights", "norm", "2.weight").values[0] == pytest.approx(expected)
    if name in WITH_OPTIMIZER:
        assert run.last("weights", "optimizer_non_finite").value == 0
    assert "2.weight" in run.layers("weights", "spectral_norm")


@pytest.mark.parametrize("name", ["TorchScript", "torch.export"])
def test_the_program_beside_the_weights_is_not_looked_at(tmp_path, model, optimizer, name):
    """What is in the archive as code, or as a pickle beside the weights, may be anything."""
    path = _written(name, model, optimizer, tmp_path / "last.pt")
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in content.items():
            keep = entry.endswith(("/data.pkl", "_config.json", "archive_format")) or "/data/" in entry
            archive.writestr(entry, data if keep else pickle.dumps(Call(os.mkdir, str(tmp_path / "mark"))))
    assert torch.equal(load_checkpoint(path).parameters["2.weight"], model[2].weight)
    assert not (tmp_path / "mark").exists()


def test_a_module_pickle_that_asks_for_more_is_refused(tmp_path, model, optimizer):
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/data.pkl", pickle.dumps(Call(os.mkdir, str(tmp_path / "mark")), protocol=2))
    assert sniff(path) is Format.TORCHSCRIPT
    for trust in (False, True):
        with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
            load_checkpoint(path, trust=trust)
    assert not (tmp_path / "mark").exists()


def test_a_tensor_larger_than_its_record_is_refused(tmp_path, model, optimizer):
    path = _written("torch.export", model, optimizer, tmp_path / "last.pt2")
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in content.items():
            archive.writestr(entry, data.replace(b'{"as_int": 40}', b'{"as_int": 99}'))
    with pytest.raises(CheckpointError, match="larger than its record"):
        load_checkpoint(path)


def test_the_index_of_a_distributed_checkpoint_is_a_pickle_and_is_not_run(tmp_path, model, optimizer):
    path = _written("distributed", model, optimizer, tmp_path / "last")
    (path / ".metadata").write_bytes(pickle.dumps(Call(os.mkdir, str(tmp_path / "mark"))))
    for trust in (False, True):
        with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
            load_checkpoint(path, trust=trust)
    assert not (tmp_path / "mark").exists()


def test_the_pieces_of_a_distributed_checkpoint_are_pickles_too(tmp_path, model, optimizer):
    path = _written("distributed", model, optimizer, tmp_path / "last")
    index, piece = pickle.loads((path / ".metadata").read_bytes()), io.BytesIO()
    torch.save(Call(os.mkdir, str(tmp_path / "mark")), piece)
    (path / "other.distcp").write_bytes(piece.getvalue())
    place = index.storage_data[MetadataIndex("step")]
    place.relative_path, place.offset, place.length = "other.distcp", 0, len(piece.getvalue())
    (path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
        load_checkpoint(path)
    assert not (tmp_path / "mark").exists()


def _in_two(path, name, sizes):
    """What two ranks would have written: the rows of a tensor in two files."""
    index = pickle.loads((path / ".metadata").read_bytes())
    whole = load_checkpoint(path).parameters[name.removeprefix("model.")]
    index.storage_data.pop(MetadataIndex(name, (0,) * whole.ndim))
    chunks, start = [], 0
    for rank, rows in enumerate(sizes):
        stream, offset = io.BytesIO(), (start, *(0,) * (whole.ndim - 1))
        torch.save(whole[start : start + rows].clone(), stream)
        (path / f"__{rank}_1.distcp").write_bytes(b"before" + stream.getvalue())
        place = type(next(iter(index.storage_data.values())))(f"__{rank}_1.distcp", 6, len(stream.getvalue()))
        index.storage_data[MetadataIndex(name, torch.Size(offset))] = place
        chunks.append(ChunkStorageMetadata(torch.Size(offset), torch.Size((rows, *whole.shape[1:]))))
        start += rows
    index.state_dict_metadata[name].chunks = chunks
    (path / ".metadata").write_bytes(pickle.dumps(index))


def test_a_tensor_in_pieces_is_put_together(tmp_path, model, optimizer):
    path = _written("distributed", model, optimizer, tmp_path / "last")
    _in_two(path, "model.2.weight", (25, 15))
    assert torch.equal(load_checkpoint(path).parameters["2.weight"], model[2].weight)
    (path / "__1_1.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_1\.distcp.*\n?.*copy the folder again"):
        load_checkpoint(path)


def test_pieces_that_leave_a_gap_are_no_tensor(tmp_path, model, optimizer):
    path = _written("distributed", model, optimizer, tmp_path / "last")
    _in_two(path, "model.2.weight", (25, 10))
    with pytest.raises(CheckpointError, match="do not make up a tensor"):
        load_checkpoint(path).parameters["2.weight"]


def test_a_task_gets_the_tensors_of_a_distributed_checkpoint(tmp_path, model, optimizer):
    path = _written("distributed", model, optimizer, tmp_path / "last")
    (tmp_path / "task.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from diagnostics import Objective\n"
        "def build(checkpoint):\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Linear(40, 40), nn.Linear(40, 2))\n"
        "    net.load_state_dict(checkpoint['model'])\n"
        "    return Objective(net, nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 2)))\n"
    )
    report = Report.from_checkpoint(path, task=str(tmp_path / "task.py"), only=("units",))
    assert report.run.steps == 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("zero_to_fp32.py", "latest"), r"DeepSpeed checkpoint.*zero_to_fp32\.py"),
        (("global_step4/mp_rank_00_model_states.pt",), r"DeepSpeed checkpoint.*zero_to_fp32\.py"),
        (("latest_checkpointed_iteration.txt",), "Megatron checkpoint"),
        (("checkpoint-10/model.safetensors",), r"pass one of the checkpoints inside.*checkpoint-10"),
        (("pytorch_model_fsdp_0/.metadata",), r"pass one of the checkpoints inside.*pytorch_model_fsdp_0"),
        (("epoch3.ckpt",), r"pass one of the files inside: epoch3\.ckpt"),
        ((), "is a folder"),
    ],
)
def test_a_folder_that_cannot_be_opened_says_what_to_do(tmp_path, files, said):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    text = " ".join(str(caught.value).split())
    assert re.search(said, text), text


def test_an_index_by_itself_and_a_part_by_itself(tmp_path, model, optimizer):
    sharded = _written("sharded safetensors", model, optimizer, tmp_path / "a")
    checkpoint = load_checkpoint(sharded / "model.safetensors.index.json")
    assert set(checkpoint.parameters) == set(model.state_dict())
    folder = _written("distributed", model, optimizer, tmp_path / "b")
    with pytest.raises(CheckpointError, match="part of a distributed checkpoint"):
        load_checkpoint(folder / "__0_0.distcp")


@pytest.mark.parametrize("name", ["../a/one.safetensors", "/etc/passwd", "three.safetensors"])
def test_an_index_leads_to_nothing_but_files_beside_it(tmp_path, model, optimizer, name):
    path = _written("sharded safetensors", model, optimizer, tmp_path / "a")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"0.weight": name}}))
    with pytest.raises(CheckpointError, match="files are missing"):
        load_checkpoint(path)


def test_an_optimizer_that_asks_for_more_is_left_out_with_a_note(tmp_path, model, optimizer):
    path = _written("accelerate", model, optimizer, tmp_path / "last")
    torch.save({"state": {}, "param_groups": [Call(os.mkdir, str(tmp_path / "mark"))]}, path / "optimizer.bin")
    checkpoint = load_checkpoint(path)
    assert checkpoint.optimizer is None
    assert any("posix.mkdir" in note for note in checkpoint.notes)
    assert any("random_states_0.pkl" in note for note in checkpoint.notes)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["TorchScript", "torch.export", "distributed"])
def test_damage_ends_in_one_clear_error(tmp_path, model, optimizer, name):
    path = _written(name, model, optimizer, tmp_path / "last")
    file = path / ".metadata" if path.is_dir() else path
    whole, generator = file.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in torch.randint(len(whole), (12,), generator=generator).tolist():
            damaged[place] = int(torch.randint(256, (), generator=generator))
        file.write_bytes(damaged[: int(torch.randint(1, len(whole), (), generator=generator))])
        # Anything else than this one error would be seen.
        with suppress(CheckpointError):
            list(load_checkpoint(path).parameters.values())


def test_a_damaged_piece_is_one_clear_error_when_it_is_read(tmp_path, model, optimizer):
    path = _written("distributed", model, optimizer, tmp_path / "last")
    _in_two(path, "model.2.weight", (40,))
    piece = path / "__0_1.distcp"
    piece.write_bytes(b"\x00" * piece.stat().st_size)
    checkpoint = load_checkpoint(path)
    with pytest.raises(CheckpointError, match="could not be read"):
        checkpoint.parameters["2.weight"]

"""The layouts that training scripts save are understood, and what is not there is said."""

import copy

import pytest
import torch
from torch import nn

from probes.checkpoint import CheckpointError, Format, load_checkpoint


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def optimizer(model):
    adam = torch.optim.AdamW(model.parameters())
    for _ in range(5):
        model(torch.randn(8, 3)).sum().backward()
        adam.step()
    return adam


def _round_trip(tmp_path, content, **options):
    path = tmp_path / "last.pt"
    torch.save(content, path)
    return load_checkpoint(path, **options)


def _same(checkpoint, model):
    expected = model.state_dict()
    return checkpoint.parameters.keys() == expected.keys() and all(
        torch.equal(checkpoint.parameters[name], tensor) for name, tensor in expected.items()
    )


def test_a_bare_state_dict(tmp_path, model):
    checkpoint = _round_trip(tmp_path, model.state_dict())
    assert _same(checkpoint, model)
    assert (checkpoint.optimizer, checkpoint.step, checkpoint.epoch, checkpoint.notes) == (None, None, None, ())
    assert checkpoint.format is Format.TORCH_ZIP


@pytest.mark.parametrize(
    "key", ["model", "state_dict", "model_state_dict", "net", "module", "params", "weights", "ema", "my_own_name"]
)
@pytest.mark.parametrize("optimizer_key", ["optimizer", "optimizer_state_dict", "optim", "o"])
def test_a_training_dict_under_any_names(tmp_path, model, optimizer, key, optimizer_key):
    content = {
        key: model.state_dict(),
        optimizer_key: optimizer.state_dict(),
        "epoch": 2,
        "step": 31,
        "rng_state": torch.get_rng_state(),
        "args": {"lr": 0.1},
    }
    checkpoint = _round_trip(tmp_path, content)
    assert _same(checkpoint, model)
    assert checkpoint.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    assert (checkpoint.step, checkpoint.epoch) == (31, 2)
    assert checkpoint.raw.keys() == content.keys()


def test_raw_is_what_was_saved(tmp_path, model):
    checkpoint = _round_trip(tmp_path, {"model": {"module.w": torch.ones(1)}, "config": {"depth": 3}})
    assert checkpoint.raw["config"] == {"depth": 3}
    assert list(checkpoint.raw["model"]) == ["module.w"]
    assert isinstance(checkpoint.raw, dict)


def test_a_lightning_checkpoint(tmp_path, model, optimizer):
    content = {
        "epoch": 1,
        "global_step": 40,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(1.0)}},
        "optimizer_states": [optimizer.state_dict(), optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 1}],
    }
    checkpoint = _round_trip(tmp_path, content)
    assert _same(checkpoint, model)
    assert "'model.' taken off the names" in checkpoint.notes
    assert (checkpoint.step, checkpoint.epoch) == (40, 1)
    assert checkpoint.optimizer["state"].keys() == optimizer.state_dict()["state"].keys()
    assert any("optimizer_states[1]" in note for note in checkpoint.notes)


@pytest.mark.parametrize("place", ["train.optimizer", "train.inner.list[1]", "a.b.c.d.e.opt"])
def test_an_optimizer_is_found_wherever_it_lies(tmp_path, model, optimizer, place):
    parts = [int(part) if part.isdigit() else part for part in place.replace("]", "").replace("[", ".").split(".")]
    content = optimizer.state_dict()
    for part in reversed(parts):
        content = [None, content] if isinstance(part, int) else {part: content}
    content["itself"] = content
    checkpoint = _round_trip(tmp_path, {"model": model.state_dict(), **content, "last": {"optim": content[parts[0]]}})
    assert checkpoint.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    assert checkpoint.step == 5
    assert not any("also there" in note for note in checkpoint.notes), "the same one, reached twice"


def test_the_step_is_read_from_adam_when_the_script_kept_none(tmp_path, model, optimizer):
    checkpoint = _round_trip(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert checkpoint.step == 5
    assert checkpoint.notes == ("the step is the largest in the optimizer's state",)


@pytest.mark.parametrize("key", ["step", "global_step", "iteration", "iter", "iter_num"])
@pytest.mark.parametrize("value", [12, 12.0, torch.tensor(12), torch.tensor(12.0)])
def test_the_step_under_its_names_and_types(tmp_path, key, value):
    assert _round_trip(tmp_path, {"model": {"w": torch.ones(1)}, key: value}).step == 12


@pytest.mark.parametrize("value", [True, -1, 1.5, float("nan"), float("inf"), "12", None, torch.ones(2)])
def test_what_is_no_count_is_not_taken_for_the_step(tmp_path, value):
    assert _round_trip(tmp_path, {"model": {"w": torch.ones(1)}, "step": value}).step is None


@pytest.mark.parametrize(
    ("saved", "bare"),
    [
        (["module.a", "module.b.c"], ["a", "b.c"]),
        (["module.module.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["model.a", "model.b"], ["a", "b"]),
        (["model.a", "head.b"], ["model.a", "head.b"]),
        (["module.model.module.a"], ["a"]),
        (["_orig_mod.a", "_orig_mod.b"], ["a", "b"]),
        (["blocks.0._orig_mod.a", "b"], ["blocks.0.a", "b"]),
        (["module._orig_mod.a"], ["a"]),
        (["_orig_mod.module.a"], ["a"]),
        (["_fsdp_wrapped_module.l._fsdp_wrapped_module.a", "b"], ["l.a", "b"]),
        (["layer._checkpoint_wrapped_module.a"], ["layer.a"]),
        (["a", "_orig_mod.a"], ["a", "_orig_mod.a"]),
        (["submodule.a"], ["submodule.a"]),
    ],
)
def test_wrapper_prefixes_are_taken_off_and_noted(tmp_path, saved, bare):
    checkpoint = _round_trip(tmp_path, {name: torch.ones(1) for name in saved})
    assert list(checkpoint.parameters) == bare
    assert bool(checkpoint.notes) == (saved != bare or len(saved) != len({name.split(".")[-1] for name in saved}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing the compiler raises some of torch's own
def test_a_compiled_model_opens_under_the_names_of_the_model(tmp_path, model):
    assert _same(_round_trip(tmp_path, torch.compile(model).state_dict()), model)


def test_a_pickled_module_needs_trust_and_gives_its_state_dict(tmp_path, model):
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.container\.Sequential"):
        _round_trip(tmp_path, model)
    checkpoint = _round_trip(tmp_path, model, trust=True)
    assert _same(checkpoint, model)
    assert isinstance(checkpoint.raw["model"], nn.Module)
    assert _same(_round_trip(tmp_path, {"net": copy.deepcopy(model), "epoch": 3}, trust=True), model)


def test_the_model_is_taken_before_its_average_and_the_choice_is_noted(tmp_path, model):
    average = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    checkpoint = _round_trip(tmp_path, {"ema": average, "model": model.state_dict()})
    assert _same(checkpoint, model)
    assert checkpoint.notes == ("the model is 'model'; also there: 'ema'",)


def test_several_models_are_kept_apart_by_their_names(tmp_path):
    content = {"rng": {"torch": torch.get_rng_state()}, "actor": {"w": torch.ones(1)}, "critic": {"w": torch.ones(2)}}
    checkpoint = _round_trip(tmp_path, {**content, "noise": torch.ones(3)})
    assert list(checkpoint.parameters) == ["actor.w", "critic.w"]
    assert "actor, critic" in checkpoint.notes[0]


def test_a_nested_training_dict(tmp_path, model):
    assert _same(_round_trip(tmp_path, {"trainer": {"state": {"model": model.state_dict()}}}), model)


def test_entries_beside_the_tensors_are_left_out_with_a_note(tmp_path):
    checkpoint = _round_trip(tmp_path, {"w": torch.ones(2), "name": "mlp", 7: torch.ones(1)})
    assert list(checkpoint.parameters) == ["w"]
    assert checkpoint.notes == ("left out of the model, being no named tensors: name, 7",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.ones(2, 3), r"one tensor of shape \(2, 3\)"),
        ([torch.ones(2), 3], "a list of 2: Tensor, int"),
        ({0: torch.ones(2)}, "0: Tensor"),
        ({"loss": 0.5, "history": [1, 2]}, "'loss': float, 'history': list"),
        ({}, "a dict of {}"),
        (None, "a NoneType"),
        (torch.optim.SGD([torch.ones(1)], lr=0.1).state_dict(), "an optimizer's state dict, without its model"),
    ],
)
def test_what_holds_no_named_tensors_is_described(tmp_path, content, said):
    with pytest.raises(CheckpointError, match=said) as caught:
        _round_trip(tmp_path, content)
    assert "expected: a state dict" in str(caught.value)


def test_every_dtype_and_a_shared_storage_survive(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    content = {"weight": weight, "tied": weight, "transposed": weight.T, "row": weight[1], "empty": torch.empty(0, 3)}
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        content[str(dtype)] = torch.ones(3).to(dtype)
    checkpoint = _round_trip(tmp_path, content)
    for name, tensor in content.items():
        assert checkpoint.parameters[name].dtype is tensor.dtype
        assert torch.equal(checkpoint.parameters[name].to(torch.complex128), tensor.to(torch.complex128))
    assert checkpoint.parameters["tied"].data_ptr() == checkpoint.parameters["weight"].data_ptr()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_older_pickle_protocols_open(tmp_path, model, protocol, zipped):
    path = tmp_path / "last.pt"
    torch.save(model.state_dict(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert _same(load_checkpoint(path), model)


def test_nothing_that_was_loaded_depends_on_what_is_written_to_it(tmp_path, model):
    """The memory map is private: changing a tensor leaves the file alone."""
    path = tmp_path / "last.pt"
    torch.save(model.state_dict(), path)
    before = path.read_bytes()
    load_checkpoint(path).parameters["0.weight"].zero_()
    assert path.read_bytes() == before

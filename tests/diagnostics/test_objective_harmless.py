"""Making and using an Objective leaves the training run as it was, wherever it is called from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from diagnostics import Hessian, Objective, effective_learning_rates, stability, unit_activity


class NoisyData(TensorDataset):
    """Augments with every global random state there is."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + torch.rand(1) + random.random() + numpy.random.rand(), y


def _data() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 3), torch.randint(2, (12,))


def _random_states() -> tuple[bytes, object, bytes]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy.random.get_state()[1].tobytes()


def test_drawing_from_a_shuffling_loader_moves_no_random_state() -> None:
    model, loader = nn.Linear(3, 2), DataLoader(NoisyData(*_data()), batch_size=4, shuffle=True)
    before = _random_states()
    objective = Objective(model, nn.CrossEntropyLoss(), loader)
    objective.gradient()
    assert _random_states() == before


def test_drawing_does_not_move_a_generator_the_loader_owns() -> None:
    """Else the order in which training sees its examples would change when a probe is attached."""
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(*_data()), batch_size=4, shuffle=True, generator=generator)
    before = generator.get_state()
    Objective(nn.Linear(3, 2), nn.CrossEntropyLoss(), loader, limit=1)
    assert torch.equal(generator.get_state(), before)


def _train(measure: Callable[[nn.Module, torch.optim.Optimizer, Objective], object] | None) -> list[Tensor]:
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(3)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(NoisyData(*_data()), batch_size=4, shuffle=True, generator=generator)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if measure is not None and optimizer.state:
                measure(model, optimizer, Objective(model, nn.CrossEntropyLoss(), loader, mode="train"))
            optimizer.step()
    drawn = torch.tensor([torch.rand(1).item(), random.random(), numpy.random.rand()])
    return [*model.state_dict().values(), *(p.grad for p in model.parameters()), drawn]


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, optimizer, objective: objective.gradient(),
        lambda model, optimizer, objective: Hessian(objective) @ torch.ones(objective.num_parameters),
        lambda model, optimizer, objective: stability(objective, optimizer),
        effective_learning_rates,
        lambda model, optimizer, objective: unit_activity(model, objective),
        lambda model, optimizer, objective: unit_activity(model, torch.randn(4, 3, generator=torch.Generator())),
    ],
    ids=["gradient", "hessian", "stability", "rates", "units on an objective", "units on a batch"],
)
def test_training_with_a_measure_in_every_step_is_bit_identical(measure: Callable[..., object]) -> None:
    for probed, plain in zip(_train(measure), _train(None), strict=True):
        assert torch.equal(probed, plain)


def _snapshot(model: nn.Module) -> list[object]:
    return [
        *((p.requires_grad, p.grad, p._version, p.data_ptr()) for p in model.parameters()),
        *((b.data_ptr(), b._version) for b in model.buffers()),
        *(
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ),
    ]


def test_modes_gradients_buffers_and_hooks_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[3].register_full_backward_hook(lambda *_: None)
    before = _snapshot(model)
    objective = Objective(model, nn.CrossEntropyLoss(), _data(), mode="train")
    objective.loss()
    objective.gradient()
    Hessian(objective) @ torch.ones(objective.num_parameters)
    assert _snapshot(model) == before


def test_everything_is_restored_after_a_loss_that_raises() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    before, random_before = _snapshot(model), _random_states()

    def broken(module: nn.Module, batch: Tensor) -> Tensor:
        module(batch)
        raise ZeroDivisionError

    objective = Objective.from_loss(model, broken, [torch.randn(4, 3, generator=torch.Generator())], mode="train")
    with pytest.raises(ZeroDivisionError):
        objective.gradient()
    assert _snapshot(model) == before
    assert _random_states() == random_before
    assert all(isinstance(tensor, nn.Parameter) for tensor in model.parameters())


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_values_do_not_depend_on_the_callers_context(context: Callable[[], contextlib.AbstractContextManager]) -> None:
    model, data = nn.Linear(3, 2), _data()
    reference = Objective(model, nn.CrossEntropyLoss(), data)
    vector = torch.randn(8)
    loss, gradient, product = reference.loss(), reference.gradient(), Hessian(reference) @ vector
    with context():
        inside = Objective(model, nn.CrossEntropyLoss(), tuple(part.clone() for part in data))
        hessian = Hessian(inside)
        assert inside.loss() == loss
        assert torch.equal(inside.gradient(), gradient)
        assert torch.equal(hessian @ vector, product)
        assert not (hessian @ vector).is_inference()


def test_a_model_made_under_inference_mode_can_be_measured() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        model[0].requires_grad_(False)
    objective = Objective(model, nn.CrossEntropyLoss(), _data(), mode="train")
    assert float((Hessian(objective) @ torch.ones(objective.num_parameters)).norm()) > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_are_measured_as_the_model_inside_and_stay_compiled(backend: str) -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), _data()
    reference = Hessian(Objective(model, nn.CrossEntropyLoss(), data)) @ torch.ones(26)
    frames = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        frames.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(model, backend=counting)
    compiled(data[0])
    count = len(frames)
    objective = Objective(compiled, nn.CrossEntropyLoss(), data)
    assert objective.model is model
    assert objective.space.names[0] == "0.weight"
    torch.testing.assert_close(Hessian(objective) @ torch.ones(26), reference)
    compiled(data[0])
    assert len(frames) == count


def test_a_module_compiled_in_place_is_run_eagerly() -> None:
    model, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), _data()
    reference = Hessian(Objective(model, nn.CrossEntropyLoss(), data)) @ torch.ones(26)
    model.compile(backend="aot_eager")
    model(data[0])
    hessian = Hessian(Objective(model, nn.CrossEntropyLoss(), data))
    torch.testing.assert_close(hessian @ torch.ones(26), reference)
    assert hessian.route.startswith("double backward")


def test_data_parallel_is_looked_through() -> None:
    model, data = nn.Linear(3, 2), _data()
    wrapped = Objective(nn.DataParallel(model), nn.CrossEntropyLoss(), data)
    assert wrapped.model is model
    assert wrapped.loss() == Objective(model, nn.CrossEntropyLoss(), data).loss()

"""Which tensors are selected, how they become one vector, and back."""

from __future__ import annotations

import torch
from torch import nn

from diagnostics.parameters import ParameterSpace, unwrap
from tests.cases import Tied, Unused


def test_flattening_and_back_keeps_order_shape_and_dtype() -> None:
    model = nn.ModuleDict({"b": nn.Linear(2, 3), "a": nn.Linear(1, 1).half()})
    space = ParameterSpace(model)
    assert space.names == ("b.weight", "b.bias", "a.weight", "a.bias")
    assert (space.total, space.sizes, space.dtype) == (11, (6, 3, 1, 1), torch.float32)
    vector = torch.arange(11.0)
    parts = space.unflatten(vector)
    assert [(part.shape, part.dtype) for part in parts] == [(p.shape, p.dtype) for p in model.parameters()]
    assert torch.equal(space.flatten(parts), vector)


def test_a_column_of_a_matrix_unflattens_like_a_vector() -> None:
    space = ParameterSpace(nn.Linear(3, 2))
    V = torch.randn(8, 5)
    for column, part in zip(space.unflatten(V[:, 2]), space.unflatten(V[:, 2].contiguous()), strict=True):
        assert torch.equal(column, part)


def test_tied_tensors_count_once_and_scalars_count_as_one() -> None:
    space = ParameterSpace(Tied())
    assert space.names == ("temperature", "first.weight", "first.bias")
    assert space.total == 1 + 9 + 3


def test_values_are_copies_and_items_are_live() -> None:
    model = Unused()
    space = ParameterSpace(model, ["used.*"])
    values = space.values()
    with torch.no_grad():
        model.used.weight.add_(1.0)
    assert not torch.equal(values[0], model.used.weight)
    assert dict(space.items())["used.weight"] is model.used.weight
    assert not any(value.requires_grad for value in values)


def test_an_empty_tensor_does_no_harm() -> None:
    model = nn.Linear(2, 1)
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0)))
    space = ParameterSpace(model)
    assert space.total == 3
    assert sorted(part.numel() for part in space.unflatten(torch.zeros(3))) == [0, 1, 2]


def _compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def test_wrappers_are_looked_through_however_deep() -> None:
    layer = nn.Linear(2, 2)
    assert unwrap(layer) is layer
    assert unwrap(_compiled(nn.DataParallel(_compiled(layer)))) is layer


def test_sparse_gradients_become_dense() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    (gradient,) = torch.autograd.grad(model(torch.tensor([1, 3, 3])).sum(), tuple(model.parameters()))
    assert gradient.is_sparse
    assert ParameterSpace(model).flatten([gradient]).view(5, 2)[:, 0].tolist() == [0, 1, 0, 2, 0]


def test_globs_may_come_from_any_iterable() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    assert ParameterSpace(model, (glob for glob in ["0.*", "1.bias"])).names == ("0.weight", "0.bias", "1.bias")

"""Microbatches bound memory and leave every value as it is, or are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, EmpiricalFisher, Fisher, GaussNewton, Hessian, Objective


def _mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def _data(count: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(count, 3, dtype=torch.float64, generator=generator),
        torch.randint(3, (count,), generator=generator),
    )


def _ignored() -> tuple[Tensor, Tensor]:
    x, y = _data()
    return x, torch.where(torch.arange(11) % 3 == 0, -100, y)


def _regression(reduction: str) -> Objective:
    x = _data()[0]
    target = torch.randn(11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return Objective(_mlp(), nn.MSELoss(reduction=reduction), [(x[:7], target[:7]), (x[7:], target[7:])])


OBJECTIVES = {
    "mean": lambda: Objective(_mlp(), nn.CrossEntropyLoss(), _data()),
    "class weights and ignored labels": lambda: Objective(
        _mlp(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double()), _ignored()
    ),
    "sum": lambda: _regression("sum"),
    "mean of elements, ragged": lambda: _regression("mean"),
}


@pytest.mark.parametrize("size", [1, 4, 11, 50])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("operator", [Hessian, GaussNewton, Fisher, EmpiricalFisher])
def test_the_operator_is_the_same(operator: type[Hessian], name: str, size: int) -> None:
    V = torch.randn(31, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, pieces = operator(OBJECTIVES[name]()), operator(OBJECTIVES[name](), microbatch=size)
    torch.testing.assert_close(pieces @ V, whole @ V, rtol=1e-10, atol=1e-12)
    assert max(len(batch[0]) for batch in pieces.objective.batches) <= size


def test_token_labels_drawn_for_the_fisher_matrix_do_not_move_either() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(6, 3), nn.Linear(3, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(tokens))).movedim(-1, 1)

    torch.manual_seed(0)
    model, data = Tagger().double(), (torch.randint(6, (7, 5)), torch.randint(4, (7, 5)))
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    V = torch.randn(34, 2, dtype=torch.float64)
    whole, pieces = Fisher(objective, samples=2, seed=3), Fisher(objective, samples=2, seed=3, microbatch=2)
    torch.testing.assert_close(pieces @ V, whole @ V, rtol=1e-10, atol=1e-12)


def test_dict_batches_are_cut_along_their_examples_only() -> None:
    model = _mlp()
    x, y = _data()
    batch = {"x": x, "y": y, "scale": torch.tensor(2.0)}
    objective = Objective.from_loss(
        model, lambda m, b: nn.functional.cross_entropy(b["scale"] * m(b["x"]), b["y"]), [batch]
    )
    v = torch.ones(31, dtype=torch.float64)
    torch.testing.assert_close(Hessian(objective, microbatch=3) @ v, Hessian(objective) @ v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_normalisation_is_cut_only_where_it_does_not_couple(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    objective = Objective(model, nn.CrossEntropyLoss(), _data(), mode=mode)
    if mode == "train":
        with pytest.raises(DiagnosticsError, match=r"batch normalisation couples.*'1' \(BatchNorm1d\)"):
            Hessian(objective, microbatch=4)
    else:
        v = torch.ones(39, dtype=torch.float64)
        torch.testing.assert_close(Hessian(objective, microbatch=4) @ v, Hessian(objective) @ v)


def test_a_loss_that_does_not_come_apart_is_refused_by_its_value() -> None:
    """A contrastive loss: each example is compared with every other of its batch."""

    def contrastive(model: nn.Module, x: Tensor) -> Tensor:
        z = model(x)
        return nn.functional.cross_entropy(z @ z.T, torch.arange(len(z)))

    objective = Objective.from_loss(_mlp(), contrastive, [_data()[0]])
    with pytest.raises(DiagnosticsError, match="would change the loss of batch 0"):
        Hessian(objective, microbatch=4)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(DiagnosticsError, match="microbatch is not a number of examples"):
        Hessian(OBJECTIVES["mean"](), microbatch=size)


class Centred(nn.Module):
    """Couples the examples of a batch, which a head of zeros hides."""

    def __init__(self, head: float) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        nn.init.constant_(self.head.weight, head)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.body(x))
        return self.head(z - z.mean(dim=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coupling_behind_a_head_of_zeros_is_seen(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = _data()
    objective = Objective(Centred(0.0).to(dtype), nn.CrossEntropyLoss(), (x.to(dtype), y))
    with pytest.raises(DiagnosticsError, match=r"would change the loss of batch 0.*moved at random"):
        Hessian(objective, microbatch=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_perfect_fit_is_still_a_sum_or_a_mean(reduction: str, known: bool, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, model = scale * _data()[0].to(dtype), _mlp().to(dtype)
    with torch.no_grad():
        y = model(x)
    loss = nn.MSELoss(reduction=reduction)
    objective = Objective(model, loss if known else lambda f, y: loss(f, y), (x, y))
    V = torch.eye(31, dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    expected = Hessian(objective) @ V
    torch.testing.assert_close(Hessian(objective, microbatch=3) @ V, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("factor", [1.0, 1e-8])
def test_a_loss_too_small_to_tell_a_mean_from_a_sum_is_refused_unless_it_says(factor: float) -> None:
    x, y = _data()
    model = _mlp().float()
    silent = Objective.from_loss(
        model, lambda m, b: factor * nn.functional.cross_entropy(m(b[0].float()), b[1]), [(x, y)]
    )
    if factor == 1.0:
        assert len(Hessian(silent, microbatch=4).objective.batches) == 3
    else:
        with pytest.raises(DiagnosticsError, match="cannot tell whether the loss of batch 0 is a mean or a sum"):
            Hessian(silent, microbatch=4)


def test_a_small_loss_in_double_precision_does_not_hide_coupling() -> None:
    torch.manual_seed(0)
    objective = Objective.from_loss(
        Centred(0.5).double(), lambda m, b: 1e-8 * nn.functional.cross_entropy(m(b[0]), b[1]), [_data()]
    )
    with pytest.raises(DiagnosticsError, match="would change the loss of batch 0"):
        Hessian(objective, microbatch=4)


def test_a_piece_of_one_example_that_the_model_refuses() -> None:
    class Functional(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(super().forward(x), None, None, training=True)

    objective = Objective(Functional(3, 3).double(), nn.CrossEntropyLoss(), _data(5))
    with pytest.raises(DiagnosticsError, match=r"does not work on batch 0.*ValueError: Expected more than 1 value"):
        Hessian(objective, microbatch=4)


def test_a_loss_that_is_not_finite_is_named() -> None:
    x, y = _data()
    x[2, 0] = torch.nan
    with pytest.raises(DiagnosticsError, match="the loss of batch 0 is not finite; given: nan"):
        Hessian(Objective(_mlp(), nn.CrossEntropyLoss(), (x, y)), microbatch=4)


def test_nested_batches_are_cut_and_random_numbers_are_left_alone() -> None:
    x, y = _data()
    objective = Objective.from_loss(
        _mlp(), lambda m, b: nn.functional.cross_entropy(m(b["in"]["x"]), b["out"][0]), [{"in": {"x": x}, "out": [y]}]
    )
    before = torch.get_rng_state()
    pieces = Hessian(objective, microbatch=3)
    assert torch.equal(torch.get_rng_state(), before)
    v = torch.ones(31, dtype=torch.float64)
    torch.testing.assert_close(pieces @ v, Hessian(objective) @ v, rtol=1e-10, atol=1e-12)

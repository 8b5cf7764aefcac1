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

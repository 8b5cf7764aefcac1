"""The weight of a batch is the number of terms its mean loss divides by."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diagnostics import Objective
from diagnostics.loss_terms import huggingface_terms, leading_dimension, pair_terms

LABELS = torch.tensor([0, 2, -100, 1, 2])


@pytest.mark.parametrize(
    ("loss", "targets", "terms"),
    [
        (nn.CrossEntropyLoss(), LABELS, 4),
        (nn.CrossEntropyLoss(ignore_index=2), LABELS.clamp_min(0), 3),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0])), LABELS, 11),
        (nn.CrossEntropyLoss(), torch.full((5, 3), 1 / 3), 5),
        (nn.CrossEntropyLoss(), torch.full((5, 3, 4), 1 / 3), 20),
        (nn.CrossEntropyLoss(), LABELS.reshape(1, 5), 4),
        (nn.CrossEntropyLoss(reduction="sum"), LABELS, 1),
        (nn.NLLLoss(), LABELS, 4),
        (nn.MSELoss(), torch.zeros(5, 3), 15),
        (nn.BCEWithLogitsLoss(), torch.zeros(5, 3), 15),
        (nn.KLDivLoss(reduction="batchmean"), torch.zeros(5, 3), 5),
        (lambda outputs, targets: outputs.mean(), torch.zeros(5, 3), 5),
        (F.cross_entropy, LABELS, 4),
        (partial(F.cross_entropy, ignore_index=2), LABELS.clamp_min(0), 3),
        (F.mse_loss, torch.zeros(5, 3), 15),
        (partial(F.mse_loss, reduction="sum"), torch.zeros(5, 3), 1),
    ],
)
def test_terms_of_a_pair(loss: object, targets: torch.Tensor, terms: float) -> None:
    assert pair_terms(loss, targets) == terms


def _split_equals_whole(loss: object, outputs: int, targets: torch.Tensor) -> None:
    model, x = nn.Linear(3, outputs).double(), torch.randn(len(targets), 3, dtype=torch.float64)
    whole = Objective(model, loss, (x, targets)).loss()
    ragged = Objective(model, loss, [(x[:1], targets[:1]), (x[1:], targets[1:])]).loss()
    assert ragged == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        partial(F.cross_entropy, ignore_index=-100, label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]).double(), label_smoothing=0.2),
    ],
)
def test_functional_and_weighted_cross_entropy_average_over_ragged_masked_batches(loss: object) -> None:
    """``F.cross_entropy`` masks -100 as well, and says so nowhere."""
    _split_equals_whole(loss, 3, LABELS)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.PoissonNLLLoss()])
def test_soft_and_real_targets_average_over_ragged_batches(loss: nn.Module) -> None:
    _split_equals_whole(loss, 3, torch.rand(5, 3, dtype=torch.float64))


class GPT2LMHeadModel(nn.Module):
    """Stands for a causal model: only names count."""


class FineTuned(GPT2LMHeadModel):
    """A user's subclass, whose name says nothing."""


class BertForMaskedLM(nn.Module):
    """Stands for a model that scores every position."""


@pytest.mark.parametrize(("kind", "terms"), [(GPT2LMHeadModel, 3), (FineTuned, 3), (BertForMaskedLM, 4)])
def test_causal_models_and_their_subclasses_never_score_the_first_label(kind: type[nn.Module], terms: int) -> None:
    labels = torch.tensor([[1, 2, -100], [-100, 4, 5]])
    assert huggingface_terms(kind(), {"labels": labels}) == terms


def test_labels_of_sequences_and_regressions_and_batches_without_labels() -> None:
    model = nn.Linear(1, 1)
    assert huggingface_terms(model, {"labels": torch.tensor([1, -100, 0])}) == 2
    assert huggingface_terms(model, {"labels": torch.zeros(3, 2)}) == 3
    assert huggingface_terms(model, {"input_ids": torch.zeros(5, 2)}) == 5


def test_leading_dimension_is_that_of_the_first_tensor_with_one() -> None:
    assert leading_dimension({"temperature": torch.tensor(1.0), "x": torch.zeros(4, 2)}) == 4


class Focal(nn.CrossEntropyLoss):
    """Averages over all examples, masked or not."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        terms = F.cross_entropy(outputs, targets, reduction="none")
        return ((1 - (-terms).exp()) ** 2 * terms).mean()


class Renamed(nn.CrossEntropyLoss):
    """Computes what its base does."""


def _compiled(loss: object) -> object:
    return torch.compile(loss, backend="eager")


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        (Focal(), 5),
        (Focal(reduction="sum"), 1),
        (Renamed(), 4),
        (_compiled(nn.CrossEntropyLoss()), 4),
        (_compiled(nn.MSELoss(reduction="sum")), 1),
        (_compiled(F.cross_entropy), 4),
        (partial(_compiled(F.cross_entropy), ignore_index=1), 4),
    ],
)
def test_subclasses_count_only_as_their_base_if_they_compute_the_same(loss: object, terms: float) -> None:
    assert pair_terms(loss, LABELS) == terms


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        (partial(F.mse_loss, weight=torch.ones(3)), 5),
        (partial(F.mse_loss, weight=torch.ones(3), reduction="sum"), 1),
        (partial(F.cross_entropy, target=LABELS), 5),
        (partial(F.mse_loss, torch.zeros(5, 3)), 5),
    ],
)
def test_partials_that_no_module_can_hold_are_losses_of_their_own(loss: object, terms: float) -> None:
    assert pair_terms(loss, torch.zeros(5, 3)) == terms

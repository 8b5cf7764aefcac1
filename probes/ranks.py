"""Ranks of features along a run: behind every non-linearity and block, in how many directions samples spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diagnostics import DiagnosticsError, Objective, layer_ranks, quiet, token_similarity
from diagnostics.arguments import whole_number
from diagnostics.output_loss import Categorical
from diagnostics.units.layer_ranks import RANKS
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of


@dataclass
class FeatureRank:
    """Five ranks of the features at every place, how far they spread about their mean, and how alike tokens are.

    Args:
        every: own schedule; the Monitor's by default.
        centred: whether ranks are of the features less their mean.
        samples: positions taken at each place. Ranks grow with it until there are several times as many as units.

    Raises:
        DiagnosticsError: samples is no number of positions.

    Source: Kumar et al., arXiv 2010.14498; Lyle et al., arXiv 2204.09560; Dong et al., arXiv 2103.03404.
    """

    every: int | Callable[[int], bool] | None = None
    centred: bool = False
    samples: int = 2048
    name: ClassVar[str] = "ranks"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        whole_number("samples is out of range", self.samples, "a whole number from 1", 1)

    def settings(self) -> dict[str, Any]:
        """What the ranks are of."""
        return {"centred": self.centred, "samples": self.samples}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Two forward passes over the objective's batches, and an eigendecomposition for each place."""
        assert moment.objective is not None
        try:
            table = layer_ranks(moment.model, moment.objective, centred=self.centred, samples=self.samples)
        except DiagnosticsError as reason:
            yield Reading("samples", None, status="skipped", note=str(reason))
            return
        if not table.rows:
            yield Reading("samples", None, status="skipped", note="the model ran no non-linearity and no block")
            return
        if (classes := _classes(moment.objective)) is not None:
            yield Reading("classes", float(classes), note="that the loss tells apart")
        for row in table.rows:
            how = f"{row.kind}, {row.rank.samples:,} of {row.positions:,} positions"
            yield Reading("samples", float(row.rank.samples), row.layer, note=how)
            yield Reading("units", float(row.rank.units), row.layer, note=how, array=row.rank.singular_values.numpy())
            for name in (*RANKS, "spread"):
                yield reading_of(name, getattr(row.rank, name), row.layer)
        for block in token_similarity(moment.model, moment.objective).rows:
            yield reading_of("token_similarity", block.similarity, block.layer)
            yield reading_of("token_residual", block.residual, block.layer)


def _classes(objective: Objective) -> int | None:
    """How many classes the loss tells apart; None where it is no cross-entropy, or cannot be seen."""
    try:
        with quiet(objective.model, objective.mode), torch.no_grad():
            seen = objective.batch_outputs(0, objective.space.values())
    except DiagnosticsError:
        return None
    return int(seen.outputs.shape[seen.kind.axis]) if isinstance(seen.kind, Categorical) else None

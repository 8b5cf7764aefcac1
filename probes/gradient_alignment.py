"""How the gradients of single examples stand to one another along a run, from one Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import (
    DiagnosticsError,
    batch_size_tests,
    clipping,
    empirical_fisher_spectrum,
    gradient_alignment,
    gradient_gram,
    group_conflict,
)
from diagnostics.arguments import real_number, whole_number
from diagnostics.noise.conflict import group_names
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of


@dataclass
class GradientAlignment:
    """Cosines between examples' gradients, the batch sizes that three tests ask for, the spectrum of the gradients; and
    where they are given, conflict between groups of examples and the bias of clipping.

    Takes all inner products between N examples: N² of them, so some hundreds of examples are enough.

    Args:
        groups: which domain, task or source each example is of, in the order of the objective's batches, (N,). Not
            classes: the gradients of classes oppose each other in every classifier.
        max_norm: the trainer's, as given to ``clip_grad_norm_``, for the rate and the bias of clipping.
        batch_size: the trainer's, for clipping; all accumulated micro-batches together.
        every: own schedule; the Monitor's by default.

    Raises:
        DiagnosticsError: groups that are no labels; a threshold or batch size that is none; one without the other.

    Source: arXiv 1904.06963 (confusion), 1710.11258 (tests), 2006.15429 (clipping), 2001.06782 (conflict).
    """

    groups: Sequence[Any] | None = None
    max_norm: float | None = None
    batch_size: int | None = None
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "gradient_alignment"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        if self.groups is not None:
            group_names(self.groups)
        if (self.max_norm is None) != (self.batch_size is None):
            raise DiagnosticsError(
                "max_norm and batch_size go together",
                given=f"{self.max_norm!r} and {self.batch_size!r}",
                expected="both for clipping, or neither",
            )
        if self.max_norm is not None:
            real_number("max_norm is not positive", self.max_norm, "a number above 0", lambda value: value > 0)
            whole_number("batch_size is not a number of examples", self.batch_size, "at least 1", 1)

    def settings(self) -> dict[str, Any]:
        """What clipping is measured for, and how many groups there are."""
        count = None if self.groups is None else len(set(group_names(self.groups)))
        return {"groups": count, "max_norm": self.max_norm, "batch_size": self.batch_size}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Everything from one matrix; what cannot be had says why."""
        assert moment.objective is not None
        try:
            gram = gradient_gram(moment.objective)
            aligned = gradient_alignment(gram)
        except DiagnosticsError as reason:
            yield Reading("mean_cosine", None, status="skipped", note=str(reason))
            return
        yield Reading("examples", float(aligned.examples))
        for name in ("mean_cosine", "lowest_cosine", "opposed", "diversity"):
            yield reading_of(name, getattr(aligned, name))
        tests = batch_size_tests(gram)
        for name in ("norm", "inner_product", "orthogonality"):
            yield reading_of(f"batch_{name}", getattr(tests, name))
        spectrum = empirical_fisher_spectrum(gram)
        yield reading_of("fisher_largest", spectrum.largest)
        yield reading_of("noise_directions", spectrum.effective_directions)
        if self.max_norm is not None and self.batch_size is not None:
            try:
                clipped = clipping(gram, self.max_norm, self.batch_size, seed=moment.seed)
            except DiagnosticsError as reason:
                yield Reading("clip_rate", None, status="skipped", note=str(reason))
            else:
                yield Reading("max_norm", self.max_norm)
                # Without a clipped batch there is no bias to be missed.
                biased = ("bias", "sideways") if float(clipped.rate) > 0 else ()
                for name in ("rate", "kept", "median_norm", *biased):
                    yield reading_of(f"clip_{name}", getattr(clipped, name))
        if self.groups is not None:
            try:
                found = group_conflict(gram, self.groups)
            except DiagnosticsError as reason:
                yield Reading("conflict", None, status="skipped", note=str(reason))
                return
            for pair in found.pairs:
                yield reading_of("conflict", pair.cosine, f"{pair.first} | {pair.second}")

"""The normaliser of the output softmax: log Z = log Σ_c exp f_c, label by label.

Cross-entropy does not mind where log Z is, so the logits may drift; in low precision, with log Z far from zero, large
models have diverged late in training. A z-loss, 10⁻⁴ log² Z, holds it (Chowdhery et al., arXiv 2204.02311; Wortsman et
al., arXiv 2309.14322). Logits that are all equal to zero have log Z = log C, with C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diagnostics.arguments import require_objective
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing
from diagnostics.objective import Objective
from diagnostics.output_loss import Categorical
from diagnostics.quiet import quiet

_ROWS = 1024
"""Labels whose logits are held in float32 or better at once."""


@dataclass(frozen=True, repr=False)
class OutputLogZ:
    """log Z over all labels that count.

    Attributes:
        mean: with its standard error over labels.
        rms: √(mean log² Z), what a z-loss punishes.
        highest: the largest.
        lowest: the smallest.
        classes: C.
    """

    mean: Estimate
    rms: Estimate
    highest: Estimate
    lowest: Estimate
    classes: int

    def __str__(self) -> str:
        return f"log Z of the output softmax over {self.classes:,} classes\n{listing(self)}"

    __repr__ = __str__


def output_log_z(objective: Objective) -> OutputLogZ:
    """Log Z of the outputs of a classifier or language model, at every label of the objective.

    Args:
        objective: with a cross-entropy, and outputs that can be seen.

    Raises:
        DiagnosticsError: another loss, or outputs that cannot be seen or are not finite.

    Example:
        >>> model = torch.nn.Linear(3, 5)
        >>> _ = [torch.nn.init.zeros_(parameter) for parameter in model.parameters()]
        >>> data = (torch.randn(8, 3), torch.randint(5, (8,)))
        >>> z = output_log_z(Objective(model, torch.nn.CrossEntropyLoss(), data))
        >>> round(float(z.mean), 4) == round(math.log(5), 4)
        True
    """
    require_objective(objective)
    found, classes = [], 0
    for index, weight in enumerate(objective.weights):
        if not weight:
            continue
        with quiet(objective.model, objective.mode), torch.no_grad():
            result = objective.batch_outputs(index, objective.space.values())
            if not isinstance(result.kind, Categorical):
                raise DiagnosticsError(
                    "the loss has no output softmax",
                    given="a loss that is not known to be a cross-entropy",
                    expected="an Objective with nn.CrossEntropyLoss, or a Hugging Face model for classes or tokens",
                )
            rows = result.kind.rows(result.outputs.detach())[result.kind.weight != 0]
            classes = rows.shape[1]
            # A whole vocabulary for every token, once more in float32, would be too much.
            kind = torch.promote_types(rows.dtype, torch.float32)
            found += [part.to(kind).logsumexp(1).double().cpu() for part in rows.split(_ROWS)]
    values = torch.cat(found)
    if not bool(values.isfinite().all()):
        raise DiagnosticsError(
            "the outputs are not finite",
            given=f"log Z is NaN or infinite at {int((~values.isfinite()).sum()):,} of {len(values):,} labels",
            expected="finite weights and inputs",
        )
    how = f"over {len(values):,} labels, {objective.mode} mode"
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return OutputLogZ(
        mean=Estimate(float(values.mean()), error, "standard error", f"mean {how}"),
        rms=exact(float(values.square().mean().sqrt()), f"root of the mean square {how}"),
        highest=exact(float(values.max()), f"largest {how}"),
        lowest=exact(float(values.min()), f"smallest {how}"),
        classes=classes,
    )

"""Reading what entries are: NaN or infinite ones in weights or optimizer state, and matrices that are all zero."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.charts import short
from reports.finding import Finding
from reports.weights.latest import latest
from reports.words import counted


def finite(run: Run) -> list[Finding]:
    """Whether every number is one."""
    counts = {name: int(count) for name, count in latest(run, "non_finite").items()}
    broken = {name: count for name, count in counts.items() if count}
    elements = int(sum(latest(run, "elements").values()))
    if not broken:
        claim = f"All {elements:,} numbers in {counted(len(counts), 'tensor')} are finite."
    else:
        worst = max(broken, key=lambda name: broken[name])
        claim = (
            f"{sum(broken.values()):,} of {elements:,} numbers are NaN or infinite, in {len(broken)} of "
            f"{len(counts)} tensors; "
            f"most in {short(worst)} ({broken[worst]:,})."
        )
    return [
        Finding(
            id="weights/finite",
            level="fail" if broken else "ok",
            claim=claim,
            value=exact(sum(broken.values()), "every entry counted"),
            threshold="no NaN and no infinity",
            meaning="A network with such weights computes nothing but NaN, and training from here cannot recover."
            if broken
            else "The file holds numbers throughout.",
            advice=(
                "Go back to an earlier checkpoint.",
                "Look at the stability ratio of the run before that step; with mixed precision, at the loss scale.",
            )
            if broken
            else (),
            evidence=("weights-rms",),
            method="every entry counted, one tensor at a time",
            citation="",
        )
    ]


def optimizer_state(run: Run) -> list[Finding]:
    """A failure where the optimizer's state is not finite."""
    record = run.last("weights", "optimizer_non_finite")
    if record is None or not record.value:
        return []
    return [
        Finding(
            id="weights/optimizer",
            level="fail",
            claim=f"The optimizer's state holds {counted(int(record.value), 'number')} that "
            f"{'is' if record.value == 1 else 'are'} "
            f"NaN or infinite ({record.note}).",
            value=exact(record.value, "every entry counted"),
            threshold="no NaN and no infinity",
            meaning="The weights may still be sound, but the next step takes them from this state.",
            advice=("Go back to an earlier checkpoint.", "Or keep the weights and start with a fresh optimizer."),
            evidence=(),
            method="every entry counted, one tensor at a time",
            citation="",
        )
    ]


def all_zero(run: Run) -> list[Finding]:
    """A warning about matrices without a number other than zero."""
    shapes = run.header.get("model", {}).get("shapes", {})
    zero = [name for name, share in latest(run, "zeros").items() if share == 1.0 and len(shapes.get(name, ())) >= 2]
    if not zero:
        return []
    return [
        Finding(
            id="weights/zero",
            level="warn",
            claim=f"{counted(len(zero), 'weight matrix')} all zero: {', '.join(short(name) for name in zero[:4])}"
            + (f" and {len(zero) - 4} more" if len(zero) > 4 else "")
            + ".",
            value=exact(len(zero), "every entry counted"),
            threshold="none",
            meaning="A zero matrix passes nothing on. Some designs start a residual branch or an adapter that way; "
            "after training it "
            "means that the matrix got no gradient.",
            advice=("Check that the layer is used and trained, unless the design starts it at zero.",),
            evidence=(),
            method="every entry counted",
            citation="",
        )
    ]

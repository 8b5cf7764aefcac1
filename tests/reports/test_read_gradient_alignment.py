"""Tails, alignment, conflict and clipping: told where they are sick, silent or calm where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure as Canvas
from runs import run_of
from torch import nn

from diagnostics import Objective
from probes import GradientAlignment, Monitor, NoiseScale, Run
from probes.run import Record
from reports.demo.digits import digits
from reports.noise import chapter as noise

ALIGNMENT = "gradient_alignment"
SHARE, TAIL, NORM = (("noise_scale", name) for name in ("top_share", "tail_index", "median_norm"))


def level_of(chapter: noise.Chapter, id: str) -> str | None:
    return next((finding.level for finding in chapter.findings if finding.id == id), None)


@pytest.mark.parametrize(
    ("shares", "tails", "norms", "level", "step"),
    [
        ([0.02, 0.03], [6.0, 5.0], [1.0, 0.9], "ok", 10),
        ([0.02, 0.80], [6.0, 1.0], [1.0, 0.01], "ok", 10),  # learned by then: as in every network that fits
        ([0.02, 0.80], [6.0, 3.0], [1.0, 0.9], "warn", 10),
        ([0.10, 0.03], [1.0, 6.0], [1.0, 0.9], "warn", 0),
        ([0.10, 0.10], [1.9, 1.9], [1.0, 1.0], "ok", 10),  # the error reaches two
        ([0.90], [1.0], [1.0], "ok", 0),  # one check cannot tell
    ],
)
def test_outliers_are_alleged_only_while_examples_are_still_to_be_learned(
    shares: list[float], tails: list[float], norms: list[float], level: str, step: int
) -> None:
    chapter = noise.read(run_of({SHARE: shares, TAIL: tails, NORM: norms}, error=0.1))
    (finding,) = chapter.findings
    assert (finding.id, finding.level) == ("noise_scale/tails", level)
    assert f"at step {step} " in finding.claim
    assert bool(finding.advice) == (level == "warn")


def trained(folder: Path, outliers: bool) -> Run:
    """The digits, of which one in a hundred is three hundred times too bright, or none."""
    torch.manual_seed(0)
    images, labels = digits(400)
    if outliers:
        images[::100] *= 300
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    objective = Objective(model, nn.CrossEntropyLoss(), (images, labels))
    probes = [NoiseScale(batch_size=32, draws=0), GradientAlignment()]
    with Monitor(model, optimizer, objective, out=folder, probes=probes, every=5, budget=None):
        for step in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[step::10]), labels[step::10]).backward()
            optimizer.step()
    return Run.open(folder)


def test_planted_outliers_are_found_and_clean_data_raises_nothing(tmp_path: Path) -> None:
    sick, healthy = trained(tmp_path / "sick", True), trained(tmp_path / "healthy", False)
    assert level_of(noise.read(sick), "noise_scale/tails") == "warn"
    assert {finding.level for finding in noise.read(healthy).findings} <= {"ok", "unmeasured"}
    chapter = noise.read_alignment(healthy)
    assert {finding.level for finding in chapter.findings} == {"ok"}
    (figure,) = chapter.figures
    figure.draw(Canvas())
    assert len(figure.table.rows) == 3
    assert "inner-product" in chapter.findings[0].claim


@pytest.mark.parametrize(
    ("cosine", "error", "level"), [(-0.6, 0.1, "warn"), (-0.6, 0.3, "ok"), (-0.1, 0.01, "ok"), (0.5, 0.1, "ok")]
)
def test_conflict_is_alleged_when_all_of_the_interval_is_below(cosine: float, error: float, level: str) -> None:
    chapter = noise.read_alignment(
        run_of({(ALIGNMENT, "conflict", "news | code"): [cosine], (ALIGNMENT, "conflict", "a | b"): [0.9]}, error=error)
    )
    assert level_of(chapter, "gradient_alignment/conflict") == level
    finding = next(one for one in chapter.findings if one.id.endswith("conflict"))
    assert "news and code" in finding.claim


def test_conflict_that_was_lost_since_says_so() -> None:
    run = run_of({(ALIGNMENT, "conflict", "1 | 0"): [0.9, 0.8]}, error=0.01)
    lost = Record(step=20, time=0.0, probe=ALIGNMENT, name="conflict", layer="1 | 0", status="skipped", note="noise")
    (finding,) = (one for one in noise.read_alignment(Run({}, [*run.records, lost])).findings if "conflict" in one.id)
    assert finding.claim.endswith(
        "0.80 ± 0.01, between groups 1 and 0, at step 10; at step 20 no cosine is to be told."
    )
    (kept,) = (one for one in noise.read_alignment(run).findings if "conflict" in one.id)
    assert "told" not in kept.claim


def test_conflict_that_is_undetermined_is_not_green() -> None:
    note = "undetermined: the interval of |G|² of 'a' reaches zero"
    record = Record(step=0, time=0.0, probe=ALIGNMENT, name="conflict", layer="a | b", status="skipped", note=note)
    (finding,) = (one for one in noise.read_alignment(Run({}, [record])).findings if one.id.endswith("conflict"))
    assert finding.level == "unmeasured"
    assert finding.advice


@pytest.mark.parametrize(("sideways", "kept", "level"), [(0.6, 0.7, "warn"), (0.1, 0.3, "ok"), (None, 1.0, "ok")])
def test_clipping_is_judged_by_how_far_it_turns_the_step(sideways: float | None, kept: float, level: str) -> None:
    values = {"clip_rate": [0.5], "clip_kept": [kept], "max_norm": [1.0], "clip_sideways": [sideways]}
    run = run_of({(ALIGNMENT, name): found for name, found in values.items()}, error=0.01)
    chapter = noise.read_alignment(run)
    assert level_of(chapter, "gradient_alignment/clipping") == level
    finding = next(one for one in chapter.findings if one.id.endswith("clipping"))
    assert ("turned by" in finding.claim) == (sideways is not None)


def test_clipping_that_does_nothing_takes_nothing_away() -> None:
    values = {"clip_rate": 0.0, "clip_kept": 1.0, "max_norm": 1.0, "clip_median_norm": 0.25}
    run = run_of({(ALIGNMENT, name): [found] for name, found in values.items()}, error=0.003)
    (finding,) = noise.read_alignment(run).findings
    assert finding.claim.endswith("none of the batches drawn at step 0; the median gradient of a batch has norm 0.25.")
    assert "takes away" not in finding.meaning
    assert finding.value is not None
    assert (finding.value.value, finding.value.kind) == (0.0, "bound")


def test_nobody_asked_means_nothing() -> None:
    assert noise.read_alignment(Run({}, [])).findings == ()
    assert noise.read(Run({}, [])).findings == ()


def test_names_of_groups_may_hold_anything() -> None:
    """A folder may be damaged, and a name have a bar in it."""
    for layer, told in (("c", "Groups c pull"), ("a|b | <i>", "Groups a|b and <i> pull"), (" | ", "Groups  and  pull")):
        chapter = noise.read_alignment(run_of({(ALIGNMENT, "conflict", layer): [-0.9]}))
        (finding,) = (one for one in chapter.findings if one.id.endswith("conflict"))
        assert finding.claim.startswith(told)

"""The demonstration shows what it says: the ratio climbs to the edge of stability and stays."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from diagnostics import DiagnosticsError
from probes import Run
from reports import Report
from reports.demo.digits import digits
from reports.demo.train import MARKER, Demo, fresh_folder, train


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "here"
    fresh_folder(folder)
    return train(folder)


def test_the_digits_are_all_there() -> None:
    images, labels = digits()
    assert tuple(images.shape) == (1797, 64)
    assert numpy.bincount(labels.numpy()).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert abs(float(images.mean())) < 1e-5


def test_the_ratio_climbs_to_the_edge_and_stays(demo: Demo) -> None:
    ratio = Run.open(demo.run).series("sharpness", "ratio")
    assert 0.5 < ratio.values[0] < 0.65
    settled = ratio.values[ratio.steps >= 300]
    assert settled.min() > 0.95
    assert settled.max() < 1.2
    report = Report.from_run(demo.run)
    assert report.document.level == "ok"
    assert "edge of stability" in report.document.diagnosis
    assert report.document.figures[0].id == "sharpness-ratio"


def test_the_checkpoint_agrees_with_the_end_of_the_run(demo: Demo) -> None:
    last = Run.open(demo.run).last("sharpness", "ratio")
    report = Report.from_checkpoint(demo.checkpoint, task=str(demo.task))
    again = report.run.last("sharpness", "ratio")
    assert last is not None
    assert again is not None
    assert last.step == again.step == 1500
    assert abs(last.value - again.value) <= last.error + again.error
    assert report.document.level == "ok"


def test_only_a_folder_of_the_demonstration_is_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").touch()
    with pytest.raises(DiagnosticsError, match="not made by the demonstration"):
        fresh_folder(theirs)
    assert (theirs / "thesis.tex").exists()
    ours = tmp_path / "ours"
    fresh_folder(ours)
    (ours / "old").touch()
    fresh_folder(ours)
    assert [path.name for path in ours.iterdir()] == [MARKER]

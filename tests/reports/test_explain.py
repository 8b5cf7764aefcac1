"""Every probe, finding and number that there is has a line on the page of measures, which is in the package too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from torch import nn

import probes
from diagnostics import Objective
from probes import Monitor
from probes.checkpoint.examine import examine
from reports.arguments import PROBES
from reports.catalogue import CHAPTERS
from reports.command_line import main
from reports.explain.names import every_name, meaning
from reports.explain.page import entries, sections
from reports.units.kinds import KINDS

ROOT = Path(__file__).parents[2]
FINDING = re.compile(r"[a-z_]+/[a-z_]+")
MADE = {
    *(f"units/{kind.name}" for kind in KINDS),
    *("units/dead_at_start", "ranks/collapse_at_start", "noise_scale/batch", "noise_stream/batch"),
    *("learning_rate/not_in_optimizer", "learning_rate/not_moving"),
}
"""Ids that are put together where they are made."""


def strings(package: str) -> Iterator[str]:
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str)


def test_every_finding_is_explained() -> None:
    themes = {*CHAPTERS, "noise_stream"}
    ids = {text for text in strings("reports") if FINDING.fullmatch(text) and text.partition("/")[0] in themes}
    assert len(ids | MADE) > 60
    known = {entry.name for entry in entries() if entry.kind == "finding"}
    assert (ids | MADE) - known == set()
    assert known - (ids | MADE) == set(), "and none that is not there any more"


def test_every_probe_is_explained() -> None:
    classes = (
        [getattr(probes, name) for name in probes.__all__] if hasattr(probes, "__all__") else vars(probes).values()
    )
    named = {one.name for one in classes if isinstance(one, type) and isinstance(getattr(one, "name", None), str)}
    known = {entry.name: entry for entry in entries() if entry.kind == "probe"}
    assert {*named, *PROBES, *CHAPTERS} - known.keys() == set()
    anchors = {section.anchor for section in sections()}
    assert {entry.link for entry in known.values()} <= anchors


def test_every_number_in_the_code_of_the_probes_is_explained() -> None:
    """Names that stand as such where a reading is made; those of a loop are in the runs below."""
    known = {entry.name.rpartition("/")[2] for entry in entries() if entry.kind == "number"}
    written = set()
    for path in sorted((ROOT / "probes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args
            if made and node.func.id in ("Reading", "reading_of") and isinstance(node.args[0], ast.Constant):
                written.add(node.args[0].value)
    assert len(written) > 80
    assert written - known == set()


def test_every_number_of_a_run_is_explained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    x, y = torch.randn(24, 5), torch.randint(3, (24,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    several = [
        *(probes.Sharpness(), probes.EffectiveLearningRate(), probes.Units(), probes.FeatureRank(), probes.Churn()),
        *(probes.NoiseScale(batch_size=8), probes.GradientAlignment(max_norm=1.0, batch_size=8)),
        *(probes.BatchSharpness(batch_size=8), probes.GradientCurvature(k=2), probes.OpposingSignals()),
        *(probes.AscentSharpness(), probes.Plasticity(steps=2, draws=2), probes.Spectrum(probes=2, steps=6)),
    ]
    with Monitor(model, optimizer, objective, out=tmp_path / "run", probes=several, every=2, budget=None):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pt")
    records = [*probes.Run.open(tmp_path / "run").records, *examine(tmp_path / "last.pt").records]
    written = {f"{record.probe}/{record.name}" for record in records} - {f"{one.name}/measurement" for one in several}
    assert len(written) > 120
    assert written - {entry.name for entry in entries() if entry.kind == "number"} == set()


@pytest.mark.parametrize(
    "name", ["sharpness", "units/dead", "diag/sharpness/ratio", "stability", "Monitor", "B_simple"]
)
def test_a_name_is_found_in_the_forms_in_which_people_have_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["explain", name])
    out = capsys.readouterr().out
    assert code == (2 if name == "B_simple" else 0)
    assert (len(out) > 50) == (code == 0)


def test_all_names_have_a_meaning_and_one_line(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [name for name in every_name() if not meaning(name)] == []
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert [name for name in every_name() if name not in out] == []
    assert all(cell_len(line) <= 80 for line in out.splitlines())


def test_a_finding_is_explained_with_its_section_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "ranks/collapse"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "features are the same for every input" in out
    assert "srank" in out
    assert "2010.14498" in out


def test_an_unknown_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "sharpnes"]) == 2
    assert "try: sharpness" in " ".join(capsys.readouterr().err.split())
    assert main(["explain", "\x1b[31m?"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_explaining_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from reports.command_line import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'matplotlib', 'numpy'} & sys.modules.keys(); sys.exit(code)"
    )
    for name in ("sharpness", "Hessian"):
        done = subprocess.run([sys.executable, "-c", program, "explain", name], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

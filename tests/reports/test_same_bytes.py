"""A report on the same run is the same file, byte for byte, whenever and wherever it is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from diagnostics import Objective
from probes import EffectiveLearningRate, Monitor, Sharpness, Spectrum, Units

PROGRAM = "import sys; from reports.command_line import main; sys.exit(main(sys.argv[1:]))"
FILES = ("-o", "report.html", "--pdf", "report.pdf", "--json", "report.json", "--markdown", "r.md", "--junit", "r.xml")


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, y = torch.randn(16, 4), torch.randint(2, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    probes = [Sharpness(), EffectiveLearningRate(), Units(), Spectrum(probes=2, steps=8)]
    with Monitor(model, optimizer, objective, out=tmp_path / "run", probes=probes, every=2, budget=None) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss.item())
    written = []
    for name, seed in (("first", "1"), ("second", "2")):
        (tmp_path / name).mkdir()
        # Sets are iterated in another order, clocks and time zones differ.
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": f"UTC+{seed}"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), *FILES],
            cwd=tmp_path / name,
            env={**environment, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert len(written[0]) == 5
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []

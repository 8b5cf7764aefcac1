"""A learning rate that kills ReLU units, and the report that says so.

Two networks learn the digits from the same start, one with a rate far too large for its first steps. The Monitor
watches both; the report names the layer where units died, and stays quiet about the healthy run.

Takes a few seconds.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from diagnostics import Objective
from probes import Monitor
from reports import Report
from reports.demo.digits import digits


def train(lr: float, out: Path) -> Report:
    """Two hundred steps of SGD on the digits, monitored."""
    torch.manual_seed(0)
    images, labels = digits(1000)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    objective = Objective(model, nn.CrossEntropyLoss(), (images, labels))
    with Monitor(model, optimizer, objective, out=out, every=25, budget=None):
        for _ in range(200):
            batch = torch.randint(len(images), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return Report.from_run(out)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    healthy, sick = train(0.05, folder / "healthy"), train(2.0, folder / "sick")
    for name, report in (("healthy", healthy), ("sick", sick)):
        print(f"{name}: {report.document.diagnosis}")
    print(f"pages: {healthy.save(folder / 'healthy.html')} {sick.save(folder / 'sick.html')}")
    assert not any(finding.id == "units/dead" for finding in healthy.findings)
    assert any(finding.id == "units/dead" for finding in sick.findings)

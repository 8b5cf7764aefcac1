"""Two ranks under DistributedDataParallel: one writes, all train the same bits as without a Monitor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from probes import Run

ROOT = Path(__file__).parents[2]

TRAIN = """
import sys
from contextlib import nullcontext

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics import Objective
from probes import Monitor
from tests.probes.bits import batches, data, differences, loader, start, trace
from tests.probes.stories import cross_entropy

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
store = distributed.FileStore(folder + ".store", 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)


def train(probed):
    start(rank)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    objective = Objective(wrapped, cross_entropy, data())
    losses = []
    with Monitor(wrapped, optimizer, objective, out=folder, every=1, budget=None) if probed else nullcontext():
        for x, y in batches(loader(), 5):
            optimizer.zero_grad()
            loss = cross_entropy(wrapped(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return trace(model, optimizer, losses)


assert differences(train(True), train(False)) == []
distributed.destroy_process_group()
print("same bits on rank", rank)
"""


def test_rank_zero_writes_and_every_rank_trains_as_if_alone(folder: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(rank), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in ranks]
    for rank, output in enumerate(outputs):
        assert f"same bits on rank {rank}" in output, output
    run = Run.open(folder)
    assert run.series("sharpness", "ratio").steps.tolist() == [0, 1, 2, 3, 4, 5]
    keys = [(record.step, record.probe, record.name, record.layer) for record in run.records]
    assert len(keys) == len(set(keys)), "each measurement stands there once"
    assert [record.note for record in run.records if record.status == "failed"] == []

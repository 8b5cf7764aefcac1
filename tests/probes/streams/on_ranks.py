"""Runs a program on several ranks, each a process of its own, and gives back what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

PREAMBLE = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from diagnostics import DiagnosticsError, NoiseTracker
from probes.streams.microbatches import watch_microbatches
from probes.streams.ranks import watch_ranks

rank, world, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", store=distributed.FileStore(file, world), rank=rank, world_size=world)
"""


def on_ranks(program: str, world: int, folder: Path) -> list[str]:
    """The output of each rank; the program finds ``rank``, ``world`` and a process group."""
    code = PREAMBLE + program + "\ndistributed.destroy_process_group()\n"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(world), str(folder / "store")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        # Where one rank failed, the others would wait for it.
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return outputs

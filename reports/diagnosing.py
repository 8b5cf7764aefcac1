"""What ``diagnose PATH`` does: finds out what the path is, measures with a progress bar, and reports."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from diagnostics import DiagnosticsError
from probes.checkpoint.examine import examine, stages
from probes.run import Run
from probes.run.reader import HEADER
from reports.compose import compose
from reports.progress import progress
from reports.report import Report


def diagnose(options: argparse.Namespace, only: Collection[str] | None) -> Report:
    """A report on a run folder or a checkpoint.

    Raises:
        DiagnosticsError: the path is neither, or options do not go with it.
    """
    [given] = options.paths
    path = Path(given)
    if path.is_dir():
        if not (path / HEADER).exists():
            raise DiagnosticsError(
                f"{path} is a folder without {HEADER}",
                expected="a run folder that a Monitor wrote, or a checkpoint file",
                attempt=_inside(path),
            )
        if options.task:
            raise DiagnosticsError("--task goes with a checkpoint", given=f"the run folder {path}")
        if options.budget is not None:
            raise DiagnosticsError(
                "--budget bounds what is measured on a checkpoint",
                given=f"the run folder {path}, which was measured while it was trained",
                attempt="Monitor(..., budget=0.05) for the next run",
            )
        return Report.from_run(path, only=only)
    with progress(stages(options.task, only), "opening the file") as bar:
        run = examine(
            path,
            task=options.task,
            trust=options.trust,
            allow=options.allow_global,
            only=only,
            device=options.device,
            seed=options.seed,
            budget=options.budget,
            keep=True,
            progress=bar.stage,
            part=bar.part,
        )
    return Report(compose(run, str(path), only), run)


def not_taken(run: Run, only: Collection[str] | None) -> str:
    """What was asked for and could not be measured, in words; empty when nothing was.

    Asked for by name: there must be a value. Asked for with everything else: it must not have failed.
    """
    latest = {record.probe: record for record in run.records}
    failed = {probe: str(record.note) for probe, record in latest.items() if record.status == "failed"}
    for name in only or ():
        of_probe = run.of(name)
        if not any(record.status == "ok" for record in of_probe):
            failed.setdefault(name, str(of_probe[-1].note) if of_probe else "there is no such measurement")
    return "; ".join(f"{name}: {reason.splitlines()[0][:200]}" for name, reason in sorted(failed.items()))


def _inside(folder: Path) -> str:
    runs = sorted(str(header.parent) for header in folder.glob(f"*/{HEADER}"))[:3]
    if runs:
        return "one of the runs inside: " + ", ".join(runs)
    files = sorted(str(file) for file in folder.iterdir() if file.suffix in (".pt", ".pth", ".ckpt", ".safetensors"))[
        :3
    ]
    return "one of the files inside: " + ", ".join(files) if files else "diagnose demo"

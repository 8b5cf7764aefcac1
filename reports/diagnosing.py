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
    path = Path(options.path)
    if path.is_dir():
        if not (path / HEADER).exists():
            raise DiagnosticsError(
                f"{path} is a folder without {HEADER}",
                expected="a run folder that a Monitor wrote, or a checkpoint file",
                attempt=_inside(path),
            )
        if options.task:
            raise DiagnosticsError("--task goes with a checkpoint", given=f"the run folder {path}")
        return Report.from_run(path, only=only)
    with progress(stages(options.task, only), "opening the file") as bar:
        run = examine(
            path,
            task=options.task,
            trust=options.trust,
            allow=options.allow_global,
            only=only,
            device=options.device,
            progress=bar.stage,
        )
    return Report(compose(run, str(path), only), run)


def not_taken(report: Report, only: Collection[str] | None, task: str | None) -> str:
    """What was asked for and could not be measured, in words; empty when nothing was."""
    failed = {record.probe: str(record.note) for record in report.run.records if record.status == "failed"}
    asked = set(only or ()) | ({"sharpness", "learning_rate", "units"} if task and only is None else set())
    if task is None and only:
        # A run, or a bare checkpoint: asked for by name, and no record of it.
        measured = {record.probe for record in report.run.records if record.status == "ok"}
        failed |= {
            name: "no such measurement in this file" for name in only if name not in measured and name not in failed
        }
    last_good = _measured_in_the_end(report.run)
    return "; ".join(
        f"{name}: {failed[name].splitlines()[0][:200]}"
        for name in sorted(asked & failed.keys())
        if name not in last_good
    )


def _measured_in_the_end(run: Run) -> set[str]:
    """Probes whose last measurement went well: an early failure of a run is a finding, not a reason to refuse."""
    last = {record.probe: record.status for record in run.records}
    return {probe for probe, status in last.items() if status == "ok"}


def _inside(folder: Path) -> str:
    runs = sorted(str(header.parent) for header in folder.glob(f"*/{HEADER}"))[:3]
    if runs:
        return "one of the runs inside: " + ", ".join(runs)
    files = sorted(str(file) for file in folder.iterdir() if file.suffix in (".pt", ".pth", ".ckpt", ".safetensors"))[
        :3
    ]
    return "one of the files inside: " + ", ".join(files) if files else "diagnose demo"

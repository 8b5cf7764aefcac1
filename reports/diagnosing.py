"""What ``diagnose PATH`` does: finds out what the paths are, measures with a progress bar, and reports."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from diagnostics import DiagnosticsError
from probes.checkpoint.along import STAGES
from probes.checkpoint.examine import examine, stages
from probes.checkpoint.folder import checkpoints_in
from probes.checkpoint.matched import examine_matched
from probes.checkpoint.trajectory import follow
from probes.run import Run
from probes.run.reader import HEADER
from reports.comparison.checkpoints import compose_checkpoints
from reports.comparison.contender import names
from reports.compose import compose
from reports.progress import progress
from reports.report import Report

MEASURING = 20
"""What measuring one checkpoint takes beside its loss, for a progress bar."""


def diagnose(options: argparse.Namespace, only: Collection[str] | None) -> Report:
    """A report on a run or a checkpoint; of several runs a comparison, of several checkpoints the path between them.

    Raises:
        DiagnosticsError: a path is neither, they are of both kinds, or options do not go with them.
    """
    paths = [Path(given) for given in options.paths]
    runs = [path for path in paths if (path / HEADER).exists()]
    if runs:
        _require_runs(options, paths, runs)
        return Report.from_run(runs[0], only=only) if len(runs) == 1 else Report.from_runs(*runs, only=only)
    if len(paths) > 1:
        inside = [checkpoints_in(path) for path in paths]
        return _matched(options, paths, inside, only) if all(inside) else _path(options, paths, only)
    [path] = paths
    _require_checkpoint(path)
    if "trajectory" in (only or ()):
        raise DiagnosticsError(
            "one checkpoint is no path", given=str(path), expected="two or more checkpoints of one run"
        )
    with progress(stages(_objective(options), only), "opening the file") as bar:
        run = examine(
            path,
            task=options.task,
            text=_text(options),
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


def _matched(
    options: argparse.Namespace, paths: list[Path], inside: list[list[Path]], only: Collection[str] | None
) -> Report:
    """Several folders of checkpoints, each of a run."""
    if options.budget is not None:
        raise DiagnosticsError(
            "--budget bounds what is measured on the checkpoints of one run",
            given=f"{len(paths)} folders of checkpoints",
            attempt="fewer probes",
        )
    runs = dict(zip(names(paths), inside, strict=True))
    work = {f"the losses of {name}": len(files) for name, files in runs.items()}
    with progress({**work, **{f"measuring {name}": MEASURING for name in runs}}, "opening the files") as bar:
        branches = examine_matched(
            runs,
            task=options.task,
            text=_text(options),
            trust=options.trust,
            allow=options.allow_global,
            only=only,
            device=options.device,
            seed=options.seed,
            progress=bar.stage,
        )
    return Report(compose_checkpoints(branches, only), *(one.run for one in branches))


def _path(options: argparse.Namespace, paths: list[Path], only: Collection[str] | None) -> Report:
    """Several checkpoints."""
    work = {"opening the files": 1, **STAGES, **stages(_objective(options), only)}
    with progress(work, "opening the files") as bar:
        run = follow(
            paths,
            task=options.task,
            text=_text(options),
            trust=options.trust,
            allow=options.allow_global,
            only=only,
            device=options.device,
            seed=options.seed,
            budget=options.budget,
            keep=True,
            progress=bar.stage,
        )
    return Report(compose(run, f"{len(paths)} checkpoints, last {run.header['last']}", only), run)


def _objective(options: argparse.Namespace) -> str | None:
    """What makes the objective, if anything does."""
    given: str | None = options.task or options.text
    return given


def _text(options: argparse.Namespace) -> Path | None:
    return Path(options.text) if options.text else None


def _require_runs(options: argparse.Namespace, paths: list[Path], runs: list[Path]) -> None:
    """Refuse what does not go with runs.

    Raises:
        DiagnosticsError: a checkpoint among them, or options for one.
    """
    other = next((path for path in paths if path not in runs), None)
    if other is not None:
        raise DiagnosticsError(
            "runs and checkpoints are not compared with each other",
            given=f"the run {runs[0]} and {other}",
            expected=f"run folders, each with {HEADER}, or checkpoints of one run",
            attempt="each kind by itself",
        )
    given = "--task" if options.task else "--text" if options.text else None
    if given:
        raise DiagnosticsError(f"{given} goes with a checkpoint", given=f"the run folder {runs[0]}")
    if options.budget is not None:
        raise DiagnosticsError(
            "--budget bounds what is measured on a checkpoint",
            given=f"the run folder {runs[0]}, which was measured while it was trained",
            attempt="Monitor(..., budget=0.05) for the next run",
        )


def _require_checkpoint(path: Path) -> None:
    """Refuse a folder that holds runs.

    Raises:
        DiagnosticsError: it does.
    """
    inside = sorted(str(header.parent) for header in path.glob(f"*/{HEADER}"))[:3] if path.is_dir() else []
    if inside:
        raise DiagnosticsError(
            f"{path} is a folder without {HEADER}",
            expected="a run folder that a Monitor wrote, or a checkpoint",
            attempt="one of the runs inside: " + ", ".join(inside),
        )


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

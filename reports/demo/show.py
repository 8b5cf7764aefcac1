"""The demonstration from beginning to end: train, report on the run, diagnose the checkpoint."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from reports.demo.train import STEPS, fresh_folder, train
from reports.progress import progress
from reports.report import Report


def show(output: str, display: Callable[[Report], None]) -> int:
    """Run the demonstration into a folder and say where everything is.

    Args:
        output: the folder.
        display: prints a report.

    Returns:
        The exit code: 0.
    """
    folder = Path(output)
    fresh_folder(folder)
    with progress(STEPS, "training on digits") as bar:
        demo = train(folder, bar.to)
    with progress(4, "writing the reports") as bar:
        run = Report.from_run(demo.run)
        bar.to(1)
        page = run.save(folder / "report.html")
        bar.to(2)
        pdf = run.save(folder / "report.pdf")
        bar.to(3)
        checkpoint = Report.from_checkpoint(demo.checkpoint, task=str(demo.task))
        checkpoint_page = checkpoint.save(folder / "checkpoint.html")
        bar.to(4)
    sys.stdout.write("The run\n\n")
    display(run)
    sys.stdout.write("\nThe checkpoint it saved\n\n")
    display(checkpoint)
    sys.stdout.write(
        f"\nreport              {page}\n"
        f"the same as PDF     {pdf}\n"
        f"checkpoint report   {checkpoint_page}\n"
        f"again yourself      {_command()} {demo.checkpoint} --task {demo.task}\n"
    )
    return 0


def _command() -> str:
    """What to type for ``diagnose``, also where the environment is not activated."""
    if shutil.which("diagnose"):
        return "diagnose"
    beside = Path(sys.executable).with_name("diagnose")
    return os.path.relpath(beside) if beside.exists() else "diagnose"

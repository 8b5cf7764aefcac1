"""Makes the reports of the gallery: runs the demonstration and some examples, and reports on what they leave.

The pages, and a picture of each in light and dark, come to lie beside the page of the gallery, which shows those that
are there. Takes about two minutes.
"""

import io
import os
import runpy
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch
from picture import CHROMIUM, DRIVER, chromium, photograph

from reports import Report
from reports.command_line import main as diagnose

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "gallery"

DEMO = "diagnose demo"
REPORTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "demo": (DEMO, ("demo/run",)),
    "checkpoint": (DEMO, ("demo/checkpoint.pt",)),
    "dead-units": ("examples/dead_units.py", ("sick",)),
    "healthy": ("examples/dead_units.py", ("healthy",)),
    "plasticity": ("examples/loss_of_plasticity.py", ("relu",)),
    "catapult": ("examples/catapult.py", ("2.5",)),
    "opposing": ("examples/opposing_signals.py", ("0.4",)),
    "rich": ("examples/lazy_rich.py", ("scale-0.2",)),
    "comparison": ("examples/compare_optimizers.py", ("runs/sgd", "runs/momentum", "runs/adam")),
}
"""The name of a page, the program that makes what it is about, and which of the things that it leaves."""


def main() -> None:
    """Run, report, and photograph."""
    # These networks are too small for more than one core.
    torch.set_num_threads(1)
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir()
    with tempfile.TemporaryDirectory() as name:
        left: dict[str, Path] = {}
        for page, (program, paths) in REPORTS.items():
            if program not in left:
                left[program] = Path(name, f"{len(left)}")
                run(program, left[program])
            # A report's title is the path it was given: a short one.
            first = next(left[program].rglob(paths[0]))
            os.chdir(first.parents[len(Path(paths[0]).parts) - 1])
            report(paths).save(TARGET / f"{page}.html")
        os.chdir(ROOT)
        if CHROMIUM.exists() and DRIVER.exists():
            with chromium(Path(name, "profile")) as browser:
                for page in REPORTS:
                    for scheme in ("light", "dark"):
                        photograph(browser, TARGET / f"{page}.html", TARGET / f"{page}-{scheme}.png", 1.0, scheme)
        else:
            print("no pictures: they need chromium and chromedriver", file=sys.stderr)


def run(program: str, folder: Path) -> None:
    """Run a program as a person would, with everything that it leaves in a folder, and without what it prints."""
    print(f"running {program}", flush=True)
    folder.mkdir()
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    sys.argv = program.split()
    with redirect_stdout(io.StringIO()):
        if program == DEMO:
            diagnose(["demo", "-o", "demo"])
        else:
            runpy.run_path(str(ROOT / program), run_name="__main__")


def report(paths: tuple[str, ...]) -> Report:
    """On a run, several runs, or a checkpoint with the task that lies beside it."""
    if len(paths) > 1:
        return Report.from_runs(*paths)
    [path] = paths
    if path.endswith(".pt"):
        return Report.from_checkpoint(path, task=str(Path(path).with_name("task.py")))
    return Report.from_run(path)


if __name__ == "__main__":
    main()

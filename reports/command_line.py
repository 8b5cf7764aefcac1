"""The command line: ``diagnose PATH`` and ``diagnose demo``.

Nothing here imports torch before it is needed, so that ``--help`` and a mistyped path answer at once. Whatever goes
wrong is one message on stderr and an exit code: 0 nothing at or above ``--fail-on``, 1 findings, 2 usage, 3 a
requested measure could not be taken, 4 refused as unsafe, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NoReturn

OK, FINDINGS, USAGE, NOT_TAKEN, UNSAFE, INTERRUPTED = 0, 1, 2, 3, 4, 130

DISTRIBUTION = "training-dynamics-diagnostics"

NAMED = (
    *("gradient_curvature", "spectrum", "sharpening", "ascent", "batch_ladder", "gradient_flow"),
    *("noise_scale", "gradient_alignment", "opposing", "attention", "ranks", "plasticity", "tangent_kernel"),
    "landscape",
)
PROBES = ("sharpness", "learning_rate", "units", "weights", *NAMED)

_EPILOG = """\
diagnose runs/a                       report on a run that a Monitor wrote
diagnose checkpoint.pt                what the bytes say: finite, sizes, spectra, step
diagnose checkpoint.pt --task task.py curvature, stability, rates and units too
diagnose demo                         train on embedded data with probes, then report

exit codes: 0 nothing at or above --fail-on, 1 findings, 2 usage, 3 a requested
measure could not be taken, 4 refused as unsafe, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """Says what was wrong and where help is, without a page of usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"diagnose: {message}\ntry: {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the process's exit code is returned."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show ± must not stop a report.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        if given[:1] == ["demo"]:
            return _guarded(lambda: _demo(given[1:]))
        return _guarded(lambda: _diagnose(given))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE


def _guarded(command: Callable[[], int]) -> int:
    """One message for everything that can go wrong."""
    try:
        return command()
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except ValueError as problem:
        from diagnostics import DiagnosticsError
        from probes.checkpoint import UnsafeCheckpointError

        if not isinstance(problem, DiagnosticsError):
            raise
        _say(str(problem))
        return UNSAFE if isinstance(problem, UnsafeCheckpointError) else USAGE


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="diagnose",
        description="Says what a training run or a checkpoint is doing, and what to do about it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version(DISTRIBUTION)}")
    parser.add_argument("path", metavar="PATH", help="a run folder, or a checkpoint; or the word demo")
    parser.add_argument(
        "--task", metavar="FILE.py[:build]", help="rebuilds the objective from the checkpoint; its code is run"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the report as a page (.html, .pdf or .json)")
    parser.add_argument("--pdf", metavar="FILE", help="write the report as a PDF")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - for stdout, and then nothing else goes there"
    )
    parser.add_argument(
        "--fail-on", choices=("warn", "fail", "never"), default="fail", help="exit with 1 at this level (default: fail)"
    )
    parser.add_argument(
        "--probes", metavar="A,B", help=f"only these: {', '.join(PROBES)}; from {NAMED[0]} on only when named"
    )
    parser.add_argument("--device", metavar="D", help="where the task makes its tensors, e.g. cuda")
    parser.add_argument(
        "--trust", action="store_true", help="run the code that a pickled checkpoint asks for: only for your own files"
    )
    parser.add_argument(
        "--allow-global", metavar="NAME", action="append", default=[], help="let the checkpoint import this one name"
    )
    return parser


def _diagnose(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    only = _probe_names(options.probes)
    if options.output and not options.output.endswith((".html", ".pdf", ".json")):
        _parser().error(f"-o {options.output}: the report's format is told by the ending: .html, .pdf or .json")
    if not os.path.exists(options.path):
        _say(f"{options.path} does not exist; expected: a run folder or a checkpoint; try: diagnose demo")
        return USAGE

    from reports.diagnosing import diagnose, not_taken

    report = diagnose(options, only)
    if options.json == "-":
        from reports.render.json import to_json

        sys.stdout.write(to_json(report.document) + "\n")
    else:
        _print(report)
    for target, ending in (
        (options.output, None),
        (options.pdf, ".pdf"),
        (None if options.json == "-" else options.json, ".json"),
    ):
        if target is not None:
            _say(f"wrote {report.save(target, ending)}", label="")
    missing = not_taken(report.run, only)
    if missing:
        _say(f"could not be measured: {missing}")
    bad = {"fail": ("fail",), "warn": ("fail", "warn"), "never": ()}[options.fail_on]
    # A failure found says more than a number missing, and often is why it is missing.
    if any(finding.level in bad for finding in report.findings):
        return FINDINGS
    return NOT_TAKEN if missing else OK


def _demo(arguments: list[str]) -> int:
    parser = _Parser(
        prog="diagnose demo", description="Train on embedded data with probes, then report. Takes under a minute."
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="diagnose-demo", help="where to put it (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    from reports.demo.show import show

    return show(options.output, _print)


def _probe_names(given: str | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    unknown = [name for name in names if name not in PROBES]
    if unknown or not names:
        _parser().error(f"--probes: unknown {', '.join(unknown) or 'empty list'}; expected some of {', '.join(PROBES)}")
    return names


def _print(report: object) -> None:
    from reports.render.terminal import to_terminal
    from reports.report import Report

    assert isinstance(report, Report)
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sys.stdout.write(to_terminal(report.document, color=color))
    sys.stdout.flush()


def _say(message: str, label: str = "diagnose: ") -> None:
    """A message within 80 columns; what was given, what was expected and what to try on lines of their own."""
    first, *details = re.split("; (?=(?:given|expected|try): )", message)
    lines = _wrapped(first, label, " " * len(label))
    for detail in details:
        lines += _wrapped(detail, "  ", "    ")
    sys.stderr.write("\n".join(lines) + "\n")


def _wrapped(text: str, first: str, following: str) -> list[str]:
    width = 80 - max(len(first), len(following))
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    return [first + lines[0], *(following + line for line in lines[1:])]

"""What can be typed: the parsers of every command, without a thing that takes time to import."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

USAGE = 2

NAMED = (
    *("gradient_curvature", "spectrum", "sharpening", "ascent", "batch_ladder", "gradient_flow"),
    *("noise_scale", "gradient_alignment", "opposing", "attention", "ranks", "plasticity", "tangent_kernel"),
    "landscape",
)
PROBES = ("sharpness", "learning_rate", "units", "weights", "trajectory", *NAMED)

ENDINGS = (".html", ".pdf", ".json", ".md")
"""A report's formats, each told by the file's ending."""

SHELLS = ("bash", "zsh", "fish")

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

_EPILOG = """\
diagnose runs/a                       report on a run that a Monitor wrote
diagnose checkpoint.pt                what the bytes say: finite, sizes, spectra, step
diagnose checkpoint.pt --task task.py curvature, stability, rates and units too
diagnose folder --text corpus.txt     the same of a Hugging Face language model
diagnose runs/a runs/b                two or more runs held against each other
diagnose step1.pt step2.pt step3.pt   the path between checkpoints of one run
diagnose a/ b/ --task task.py         checkpoints of several runs, at equal loss
diagnose demo                         train on embedded data with probes, then report
diagnose explain NAME                 what a measure, a number or a finding means
diagnose doctor                       what works on this machine
diagnose completion bash              completion for bash, zsh or fish

exit codes: 0 nothing at or above --fail-on, 1 findings, 2 usage, 3 a requested
measure could not be taken, 4 refused as unsafe, 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """Says what was wrong and where help is, without a page of usage before it."""

    def error(self, message: str) -> NoReturn:
        """Leave with one message."""
        self.exit(USAGE, f"diagnose: {message}\ntry: {self.prog} --help\n")


class _Version(argparse.Action):
    """Looks the version up when it is asked for: reading the metadata takes longer than all the rest of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from importlib import metadata

        parser.exit(0, f"diagnose {metadata.version('training-dynamics-diagnostics')}\n")


def main_parser() -> Parser:
    """``diagnose PATH ...``."""
    parser = Parser(
        prog="diagnose",
        description="Says what a training run or a checkpoint is doing, and what to do about it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a run folder or a checkpoint, or several; or a command's name"
    )
    parser.add_argument(
        "--task", metavar="FILE.py[:build]", help="rebuilds the objective from the checkpoint; its code is run"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="of a Hugging Face folder, the language-model loss on this text; instead of a task",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the report: .html, .pdf, .json or .md")
    parser.add_argument("--pdf", metavar="FILE", help="write the report as a PDF")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - for stdout, and then nothing else goes there"
    )
    parser.add_argument(
        "--markdown",
        metavar="FILE",
        help="write the findings as Markdown, as for a CI summary; - for stdout, and then nothing else goes there",
    )
    parser.add_argument("--junit", metavar="FILE", help="write the findings as JUnit XML, a test case for each")
    parser.add_argument(
        "--fail-on", choices=("warn", "fail", "never"), default="fail", help="exit with 1 at this level (default: fail)"
    )
    parser.add_argument(
        "--probes", metavar="A,B", help=f"only these: {', '.join(PROBES)}; from {NAMED[0]} on only when named"
    )
    parser.add_argument(
        "--budget",
        metavar="TIME",
        type=_seconds,
        help="no more time than this for measuring a checkpoint, as 90s or 5m",
    )
    parser.add_argument("--device", metavar="D", help="where the task makes its tensors, e.g. cuda")
    parser.add_argument("--seed", metavar="N", type=_seed, default=0, help="of what is drawn at random (default: 0)")
    parser.add_argument(
        "--trust", action="store_true", help="run the code that a pickled checkpoint asks for: only for your own files"
    )
    parser.add_argument(
        "--allow-global", metavar="NAME", action="append", default=[], help="let the checkpoint import this one name"
    )
    return parser


def demo_parser() -> Parser:
    """``diagnose demo``."""
    parser = Parser(
        prog="diagnose demo", description="Train on embedded data with probes, then report. Takes under a minute."
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="diagnose-demo", help="where to put it (default: %(default)s)"
    )
    return parser


def explain_parser() -> Parser:
    """``diagnose explain``."""
    parser = Parser(
        prog="diagnose explain",
        description="What a measure, a number or a finding means, how it is computed, its caveats and its source.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as sharpness or units/dead; all names without it")
    return parser


def doctor_parser() -> Parser:
    """``diagnose doctor``."""
    parser = Parser(prog="diagnose doctor", description="What works on this machine, and what it is needed for.")
    parser.add_argument("--json", action="store_true", help="the same as JSON on stdout")
    return parser


def completion_parser() -> Parser:
    """``diagnose completion``."""
    parser = Parser(prog="diagnose completion", description="Prints a script that completes diagnose in a shell.")
    parser.add_argument("shell", choices=SHELLS, help="the shell that it is for")
    return parser


def probe_names(given: str | None) -> tuple[str, ...] | None:
    """The names behind ``--probes``; None for all."""
    if given is None:
        return None
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    unknown = [name for name in names if name not in PROBES]
    if unknown or not names:
        problem = f"unknown {', '.join(unknown)}" if unknown else "an empty list"
        main_parser().error(f"--probes: {problem}; expected some of {', '.join(PROBES)}")
    return names


def _seconds(text: str) -> float:
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; expected such as 90s, 5m or 1h30m")
    return seconds


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; expected a whole number from 0, below 2 to the 32")
    return int(text)

"""The command line: ``diagnose PATH``, and the commands beside it.

Nothing here imports torch before it is needed, so that ``--help`` and a mistyped path answer at once. Whatever goes
wrong is one message on stderr and an exit code: 0 nothing at or above ``--fail-on``, 1 findings, 2 usage, 3 a
requested measure could not be taken, 4 refused as unsafe, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from reports.arguments import (
    ENDINGS,
    USAGE,
    completion_parser,
    demo_parser,
    doctor_parser,
    explain_parser,
    main_parser,
    probe_names,
)
from reports.saying import say

if TYPE_CHECKING:
    from reports.report import Report

OK, FINDINGS, NOT_TAKEN, UNSAFE, INTERRUPTED = 0, 1, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the process's exit code is returned."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show ± must not stop a report.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    command = _COMMANDS.get(given[0]) if given else None
    try:
        return _guarded(lambda: _diagnose(given) if command is None else command(given[1:]))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE


def _guarded(command: Callable[[], int]) -> int:
    """One message for everything that can go wrong."""
    try:
        return command()
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except MemoryError:
        say("memory ran out; try: a machine with more of it, or fewer examples in the task's objective")
        return NOT_TAKEN
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except ValueError as problem:
        from diagnostics import DiagnosticsError
        from probes.checkpoint import UnsafeCheckpointError

        if not isinstance(problem, DiagnosticsError):
            raise
        say(str(problem))
        return UNSAFE if isinstance(problem, UnsafeCheckpointError) else USAGE


def _diagnose(arguments: list[str]) -> int:
    options = main_parser().parse_args(arguments)
    only = probe_names(options.probes)
    if options.output and not options.output.endswith(ENDINGS):
        kinds = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        main_parser().error(f"-o {options.output}: the report's format is told by the ending: {kinds}")
    if options.json == options.markdown == "-":
        main_parser().error("--json - and --markdown -: only one of them can have stdout")
    if options.task and options.text:
        main_parser().error("--task and --text: each makes the objective; give one")
    for path in options.paths:
        if not os.path.lexists(path):
            say(f"{path} does not exist; expected: a run folder or a checkpoint; try: diagnose demo")
            return USAGE

    from reports.diagnosing import diagnose, not_taken

    report = diagnose(options, only)
    _write(report, options)
    interrupted = report.run.header.get("interrupted")
    if interrupted:
        say(f"interrupted {interrupted}; the report holds what was measured until then")
        return INTERRUPTED
    missing = not_taken(report.run, only)
    if missing:
        say(f"could not be measured: {missing}")
    bad = {"fail": ("fail",), "warn": ("fail", "warn"), "never": ()}[options.fail_on]
    # A failure found says more than a number missing, and often is why it is missing.
    if any(finding.level in bad for finding in report.findings):
        return FINDINGS
    return NOT_TAKEN if missing else OK


def _write(report: Report, options: Namespace) -> None:
    """The report on stdout, in one form, and in files."""
    wanted = {".json": options.json, ".md": options.markdown}
    ending = next((ending for ending, target in wanted.items() if target == "-"), None)
    if ending is None:
        _print(report)
    else:
        sys.stdout.write(report.text(ending))
        sys.stdout.flush()
    for target, ending in (
        (options.output, None),
        (options.pdf, ".pdf"),
        (options.json, ".json"),
        (options.markdown, ".md"),
        (options.junit, ".xml"),
    ):
        if target not in (None, "-"):
            say(f"wrote {report.save(target, ending)}", label="")


def _demo(arguments: list[str]) -> int:
    options = demo_parser().parse_args(arguments)

    from reports.demo.show import show

    return show(options.output, _print)


def _explain(arguments: list[str]) -> int:
    options = explain_parser().parse_args(arguments)

    from reports.explain.show import show

    return show(options.name)


def _doctor(arguments: list[str]) -> int:
    options = doctor_parser().parse_args(arguments)

    from reports.doctor.show import show

    return show(as_json=options.json)


def _completion(arguments: list[str]) -> int:
    options = completion_parser().parse_args(arguments)

    from reports.completion import script

    sys.stdout.write(script(options.shell))
    return OK


_COMMANDS = {"demo": _demo, "explain": _explain, "doctor": _doctor, "completion": _completion}


def _print(report: Report) -> None:
    from reports.render.terminal import to_terminal

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sys.stdout.write(to_terminal(report.document, color=color))
    sys.stdout.flush()

"""Damaged checkpoints and run folders through the command line: ``python -m benchmarks.damaged_inputs 10000``.

Each must end in an exit code that says what happened, with one message where it is not a report; none may end in a
traceback, and no code of theirs may run.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from benchmarks.damage import Damage
from reports.command_line import main as diagnose

MEANT = {
    0: "a report, nothing found",
    1: "a report with findings",
    2: "a message",
    3: "a measure missing",
    4: "refused",
}
PAGES = 40
"""Every so manieth case is also written as a page with its figures, which takes a second."""


def problem_with(damage: Damage, seed: int) -> tuple[int | None, str]:
    """The exit code of one case, and what was wrong with how it ended; empty when nothing was."""
    path, how = damage.case(seed)
    arguments = [str(path), "--json", "-"]
    if seed % PAGES == 0:
        arguments += ["-o", str(damage.folder / "page.html")]
    out, err = io.StringIO(), io.StringIO()
    code = None
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = diagnose(arguments)
    # That is what is looked for here.
    except BaseException as problem:
        if isinstance(problem, KeyboardInterrupt):
            raise
        lines = traceback.format_exception(problem)
        return None, f"{how}: {''.join(lines[-3:])}"
    return code, _wrong(damage, code, out.getvalue(), err.getvalue()) and f"{how}: {code}, {err.getvalue()[:400]}"


def _wrong(damage: Damage, code: int, out: str, err: str) -> bool:
    if damage.mark.exists() or code not in MEANT or "Traceback" in err:
        return True
    if code in (2, 4):
        # What takes a while says first what it is at.
        told = any(line.startswith("diagnose: ") for line in err.splitlines())
        return out != "" or not told or len(err) > 4000
    return not isinstance(json.loads(out), dict)


def main(cases: int, first: int) -> int:
    """Run the cases; 1 if any went wrong."""
    codes: Counter[int | None] = Counter()
    wrong = 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        damage = Damage(Path(folder))
        for seed in range(first, first + cases):
            code, problem = problem_with(damage, seed)
            codes[code] += 1
            if problem:
                wrong += 1
                print(f"seed {seed}: {problem}", flush=True)
    print(f"{cases:,} damaged inputs in {time.perf_counter() - began:.0f} s: {wrong} ended wrongly")
    for code, count in sorted(codes.items(), key=str):
        print(
            f"  exit code {code}: {count:6,}  {MEANT.get(code or 0, '')}" if code is not None else f"  raised: {count}"
        )
    return int(wrong > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damaged_inputs", description=__doc__)
    parser.add_argument("cases", nargs="?", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    sys.exit(main(options.cases, options.first))

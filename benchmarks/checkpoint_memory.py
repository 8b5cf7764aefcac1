"""What it takes to diagnose a gigabyte: peak memory against the bound, and time, for both file formats.

The bound is 1.3 times the largest tensor and 300 MB, in which the interpreter and its libraries have to find room too;
how much those take by themselves is printed beside it. Run it by itself, ``python -m benchmarks.checkpoint_memory``: it
needs 3 GB of disk and some minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

MEGABYTE = 1e6
TIMES_LARGEST, BESIDE = 1.3, 300.0

# In a process of its own, since a peak is never taken back.
_MEASURED = """
import resource, sys
from reports.command_line import main
code = main(sys.argv[1:]) if len(sys.argv) > 1 else __import__("reports.diagnosing") and 0
unit = 1 if sys.platform == "darwin" else 1024
sys.stderr.write(f"\\npeak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}")
sys.exit(code)
"""


def language_model() -> dict[str, Tensor]:
    """The tensors of a GPT-2 of medium width, 16 layers: 1.01 GB, the embedding a fifth of it."""
    tensors = {"embedding": torch.randn(50_257, 1024) / 50, "positions": torch.randn(1024, 1024) / 100}
    for layer in range(16):
        for name, shape in (("qkv", (3072, 1024)), ("out", (1024, 1024)), ("up", (4096, 1024)), ("down", (1024, 4096))):
            tensors[f"layers.{layer}.{name}"] = torch.randn(shape) / 32
    return tensors


def squares() -> dict[str, Tensor]:
    """Sixteen matrices of 4096 x 4096: 1.07 GB, no tensor more than a sixteenth of it."""
    return {f"layers.{layer}": torch.randn(4096, 4096) / 64 for layer in range(16)}


def make(kind: str, folder: Path) -> None:
    """Write both files."""
    torch.manual_seed(0)
    tensors = {"language model": language_model, "squares": squares}[kind]()
    torch.save({"model": tensors}, folder / "last.pt")
    save_file(tensors, folder / "last.safetensors")
    (folder / "largest").write_text(str(max(tensor.nbytes for tensor in tensors.values())))


def main() -> None:
    """Print a line per file."""
    print(f"diagnose a gigabyte: peak resident memory; {_peak():.0f} MB before any file is opened")
    for kind in ("language model", "squares"):
        with tempfile.TemporaryDirectory() as folder:
            # A process inherits the peak of the one that started it, which therefore has to stay small.
            subprocess.run([sys.executable, "-m", __spec__.name, kind, folder], check=True)
            largest = int((Path(folder) / "largest").read_text()) / MEGABYTE
            bound = TIMES_LARGEST * largest + BESIDE
            for file in sorted(Path(folder).glob("last.*")):
                began = time.perf_counter()
                peak = _peak(str(file), "--fail-on", "never")
                verdict = f"<= {bound:.0f} met" if peak <= bound else f"> {bound:.0f} MISSED"
                took = f"{time.perf_counter() - began:.0f} s"
                what = f"{kind}, {file.suffix}, {file.stat().st_size / 1e9:.2f} GB, largest tensor {largest:.0f} MB"
                print(f"  {what}: {peak:.0f} MB {verdict}, {took}", flush=True)


def _peak(*arguments: str) -> float:
    done = subprocess.run([sys.executable, "-c", _MEASURED, *arguments], capture_output=True, text=True, check=True)
    return int(done.stderr.rsplit("peak ", 1)[1]) / MEGABYTE


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 2 else main()

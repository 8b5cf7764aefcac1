"""A GPT-2 of 124 million parameters on a CPU: its largest eigenvalue and its spectral density, in memory and time.

The weights are random, so that nothing is downloaded. Run it by itself, ``python -m benchmarks.gpt2``: memory is the
peak of the process.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from diagnostics import Hessian, Objective, spectral_density, top_eigenpairs

GIGABYTE = 1e9
MOST_MEMORY = 16.0

T = TypeVar("T")


def peak() -> float:
    """Largest resident size so far, in gigabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGABYTE


def measured(what: str, action: Callable[[], T]) -> T:
    """The result, with time and peak memory printed."""
    began = time.perf_counter()
    result = action()
    print(f"{what}: {time.perf_counter() - began:.0f} s, peak {peak():.2f} GB", flush=True)
    return result


def main() -> None:
    """Print each stage; fail when memory does not stay within bounds."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    tokens = torch.randint(model.config.vocab_size, (1, 32))
    objective = Objective.huggingface(model, [{"input_ids": tokens, "labels": tokens}])
    print(f"{objective.num_parameters:,} parameters, {objective.description}, float32, peak {peak():.2f} GB")
    measured("gradient", objective.gradient)
    H = Hessian(objective)
    measured("first product, with its check", lambda: H @ torch.ones(objective.num_parameters))
    measured("a further product", lambda: H @ torch.ones(objective.num_parameters))
    pairs = measured("largest eigenvalue to 1 %", lambda: top_eigenpairs(H, tol=1e-2))
    print(f"  {pairs}")
    spectrum = measured("density, 1 probe of 32 steps", lambda: spectral_density(H, probes=1, steps=32))
    print(f"  trace {spectrum.trace}, {spectrum.how}")
    verdict = "met" if peak() <= MOST_MEMORY and pairs.converged else "MISSED"
    print(f"certified within {MOST_MEMORY:g} GB: {verdict}, peak {peak():.2f} GB")


if __name__ == "__main__":
    main()

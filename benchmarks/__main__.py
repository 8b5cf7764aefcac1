"""Run every benchmark: ``python -m benchmarks``."""

from benchmarks import overhead, top_eigenvalue

for benchmark in (top_eigenvalue, overhead):
    benchmark.main()

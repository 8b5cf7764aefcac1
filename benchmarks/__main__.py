"""Run every benchmark: ``python -m benchmarks``."""

import argparse

from benchmarks import curvature, noise_stream, overhead, per_example, power_law, tangent_kernel, top_eigenvalue

parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Side by side with peers, as ratios.")
parser.add_argument("--device", default="cpu", help="where curvature is measured; the small ones stay on the CPU")
device = parser.parse_args().device
top_eigenvalue.main()
overhead.main()
noise_stream.main()
per_example.main()
tangent_kernel.main()
power_law.main()
curvature.main(device)

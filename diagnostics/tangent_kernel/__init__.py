"""The tangent kernel: how much a step on one example moves the outputs of another."""

"""Feeding a NoiseTracker from a live run: from the micro-batches of a step, or from the ranks of a DDP model."""

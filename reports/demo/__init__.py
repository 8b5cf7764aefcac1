"""The demonstration: real data, a run at the edge of stability, and a checkpoint with its task."""

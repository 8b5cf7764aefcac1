"""Reading several checkpoints: where training went, and whether it stood still or turned back on the way."""

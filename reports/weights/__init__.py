"""Reading weights by themselves: what a checkpoint says with nothing else known."""

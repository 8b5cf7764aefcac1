"""Where training went: several checkpoints of one run as a path in weight space, and the loss between two of them."""

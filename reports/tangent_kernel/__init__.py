"""Reading the tangent kernel: lazy or rich, what it is aligned with, and what is left to learn along its modes."""

"""Units: what goes into and comes out of each non-linearity."""

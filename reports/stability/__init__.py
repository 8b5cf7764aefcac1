"""Reading the edge of stability: which regime a run is in, and what its curvature does to its steps."""

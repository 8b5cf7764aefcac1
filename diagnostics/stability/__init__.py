"""Edge of stability: the curvature at which an optimizer's step stops contracting."""

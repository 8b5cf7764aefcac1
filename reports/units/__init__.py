"""Reading units: what of a network still takes part."""

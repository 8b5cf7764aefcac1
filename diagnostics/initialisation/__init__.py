"""Networks at initialisation: whether signals and gradients come through their depth."""

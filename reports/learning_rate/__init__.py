"""Reading learning rates: how far steps move each tensor, and what is left of the schedule."""

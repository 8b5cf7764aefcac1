"""Reading gradient noise: what it says about the batch in use."""

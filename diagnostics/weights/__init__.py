"""What can be said of weights from their values alone, without a model, a loss or data."""

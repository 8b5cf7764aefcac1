"""Gradient noise: how the gradients of single examples differ."""

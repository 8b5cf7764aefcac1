"""Effective learning rates: how far a step really moves each tensor."""

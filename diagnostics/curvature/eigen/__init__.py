"""Extreme eigenpairs: Lanczos with a bounded basis, when it may stop, and what it cannot have missed."""

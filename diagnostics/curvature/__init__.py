"""Curvature: operators, their products, and their extreme eigenpairs."""

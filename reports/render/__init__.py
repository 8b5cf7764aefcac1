"""Renderers: pure functions of a Document, one per medium."""

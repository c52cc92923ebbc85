"""Measurements against peers that run in the same call."""

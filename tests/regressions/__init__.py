"""Regressions: one test a fault that was found, named for it."""

"""Regression tests: one per fault found, named after it. "Former fault" says what happened before the fix."""

"""Switches of this project's tests. Nothing here does anything unless a test arms it."""

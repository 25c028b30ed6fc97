"""Writes the tables and plots of docs/honest-assessment.md from the results."""


def write() -> None:
    pass

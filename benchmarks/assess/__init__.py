"""The honest assessment: the questions of the first attempt, answered by measurement (docs/honest-assessment.md)."""

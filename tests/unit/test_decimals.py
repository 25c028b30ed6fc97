"""Decimals that overflow in Arrow's own rescaling are stored exactly or refused."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ducklake_flows.sources.values import Unfit, fit

TARGETS = st.tuples(st.integers(1, 38), st.integers(0, 38)).filter(lambda t: t[1] <= t[0])


def fitted(column: pa.Array, precision: int, scale: int) -> Any:
    try:
        return fit(pa.chunked_array([column]), pa.decimal128(precision, scale), "v").to_pylist()
    except Unfit as error:
        assert error.column == "v"  # noqa: PT017 - the test compares whether it is refused
        return None


def holds(number: Fraction, precision: int, scale: int) -> bool:
    """Whether a decimal of this type can hold the number exactly, computed with integers only."""
    shifted = number * 10**scale
    return bool(shifted.denominator == 1 and abs(shifted.numerator) < 10**precision)


def test_arrow_wraps_a_decimal_that_is_too_large() -> None:
    """Documents an Arrow bug. Once this test fails, `_rescaled` may be a cast again."""
    given = pa.array([Decimal("99999999999999.9999")], pa.decimal128(18, 4))
    assert given.cast(pa.decimal128(38, 38))[0].as_py() < 1
    assert pa.array(["99999999999999.9999"]).cast(pa.decimal128(38, 38))[0].as_py() < 1


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**38 - 1), st.integers(0, 38), TARGETS)
@example(999_999_999_999_999_999, 4, (38, 38))
def test_a_decimal_is_converted_exactly_or_refused(digits: int, scale: int, target: tuple[int, int]) -> None:
    number = Fraction(digits, 10**scale)
    with localcontext() as context:
        context.prec = 100
        value = Decimal(digits).scaleb(-scale)
        for kind in (pa.decimal128(38, scale), pa.decimal256(76, scale)):
            found = fitted(pa.array([value, None], kind), *target)
            assert (found is not None) == holds(number, *target)
            assert found is None or (Fraction(found[0]) == number and found[1] is None)
        for text in (format(value, "f"), f"{digits}e-{scale}", f"{value:E}"):
            found = fitted(pa.array([text, None]), *target)
            assert (found is not None) == holds(number, *target), text
            assert found is None or Fraction(found[0]) == number


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), TARGETS)
def test_an_integer_is_converted_to_a_decimal_exactly_or_refused(number: int, target: tuple[int, int]) -> None:
    found = fitted(pa.array([number]), *target)
    assert (found is not None) == holds(Fraction(number), *target)
    assert found is None or Fraction(found[0]) == number


@pytest.mark.parametrize(
    "text", ["", "nan", "Infinity", "1_000", "١", "1e5000", "x" * 60, "1e", "--1", "9" * 60, "1e-400", "0x10"]
)
def test_text_that_is_not_a_decimal_is_refused(text: str) -> None:
    assert fitted(pa.array([text, "1e0"]), 38, 9) is None
    assert fitted(pa.array([text, "1"]), 38, 9) is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Decimal("9" * 60), pa.decimal256(76, 0)),
        (Decimal("0." + "9" * 76), pa.decimal256(76, 76)),
        (Decimal("9" * 70 + ".25"), pa.decimal256(76, 2)),
    ],
)
def test_a_256_bit_decimal_that_fits_no_column_is_refused(value: Decimal, kind: pa.DataType) -> None:
    for target in ((38, 38), (38, 9), (38, 0)):
        assert fitted(pa.array([value], kind), *target) is None

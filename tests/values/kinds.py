"""Hypothesis strategies for values of every type that a source may have, and their Arrow types."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from tests.values.oracle import EPOCH, Nano, Single

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True)
class Kind:
    """A type of values.

    Args:
        name: Its name in reports.
        values: Strategy for its values; never None.
        arrow: The Arrow type of the values; None if there is none.
        contract: A contract type that holds all values; None if there is none.
        family: A column's type may change within a family.
        plain: Whether every value must be accepted in every form that can hold it.
        sample: The fixed values for the table in the documentation.
    """

    name: str
    values: SearchStrategy[Any]
    arrow: pa.DataType | None = None
    contract: str | None = None
    family: str = ""
    plain: bool = True
    sample: tuple[Any, ...] = ()

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Values as an Arrow array."""
        kind = self.arrow
        assert kind is not None, self.name
        if isinstance(kind, pa.UuidType):
            storage = pa.array([None if v is None else v.bytes for v in values], pa.binary(16))
            return pa.ExtensionArray.from_storage(kind, storage)
        if isinstance(kind, pa.JsonType):
            return pa.ExtensionArray.from_storage(kind, pa.array(values, pa.string()))
        if pa.types.is_float16(kind):
            return pa.array([None if v is None else np.float16(v) for v in values], kind)
        if pa.types.is_run_end_encoded(kind):
            import pyarrow.compute as pc

            return pc.run_end_encode(pa.array(values, kind.value_type))
        if any(isinstance(v, Nano) for v in values):
            return pa.array([None if v is None else int(v) for v in values], pa.int64()).cast(kind)
        if pa.types.is_map(kind):
            return pa.array([None if v is None else list(v.items()) for v in values], kind)
        return pa.array(values, kind)


def _ints(bits: int, signed: bool) -> SearchStrategy[int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1, high - 1])


def decimals(precision: int, scale: int) -> SearchStrategy[Decimal]:
    """Decimals with a given precision and scale."""
    most = 10**precision - 1
    return (st.integers(-most, most) | st.sampled_from([0, 1, -1, most, -most])).map(
        lambda n: Decimal((int(n < 0), tuple(map(int, str(abs(n)))), -scale))
    )


TRICKY = (
    *("", " ", "a", "NULL", "null", "NA", "N/A", "nan", "NaN", "inf", "-inf", "Infinity", "None", "true", "False"),
    *("0", "-0", "007", "00501", "1", "-1", "+1", "1.0", "1.50", ".5", "5.", "1e5", "1E-7", "0x10", "1_000", "1,5"),
    *("9223372036854775808", "12345678901234567890", "0.1000000000000000055511151231257827", "1e400", "1e-400", "-0.0"),
    *("12345678901234567890.12", "2024-01-01", "2024-02-30", "2024-01-01 00:00:00", "2024-01-01T10:00:00Z", "10:00"),
    *("2024-01-01T10:00:00.123456789", "0000-00-00", "20240101", "01/02/2024", "24:00:00", "2024-01-01 10:00:00+02"),
    *('a"b', '"', '""', "a,b", "a;b", "a\tb", "a|b", "a\nb", "a\rb", "a\r\nb", "\n", "\r", "#a", "\\"),
    *('\\"', "\\n", "a\\", "'", " a ", "\ufeff", "é", "e\u0301", "日本語", "Ω", "🙂", "\u202eabc", "\x1f", "\x7f"),
    *("{}", "[]", '{"a": 1}', "'a'", "$1", "%s", "\u2028", "\x85", "\x0b", "\xa0", "-", ".", "e", "--1", "1-1", "1/1"),
    *("infinity", "-Infinity", "t", "f", "yes", "no", "T", "1 ", " 1", "epoch", "today", "5 days", "b''", "\\x41"),
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    TRICKY
)
DOUBLES = st.floats() | st.sampled_from(
    [0.1, -0.0, 5e-324, 1.7976931348623157e308, 0.30000000000000004, 1e22, 1e23, 2.0**53, 2.0**63, 1e15, 123456.789]
)
MOMENTS = st.datetimes() | st.sampled_from([datetime.min, datetime.max, EPOCH, datetime(2024, 3, 31, 2, 30)])
INSIDE = st.builds(
    lambda moment, minutes: moment.replace(tzinfo=timezone(timedelta(minutes=minutes))),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)),
    st.integers(-14 * 60, 14 * 60),
)
"""Moments that are valid in every zone: pandas crashes the process on the years 0 and 10000."""
ZONED = INSIDE | st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
NANOS = st.integers(-(2**63) + 1, 2**63 - 1).map(Nano)
DATES = st.dates() | st.sampled_from([date.min, date.max])
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS | st.just("a\0b") | decimals(30, 5)
)  # fmt: skip
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
OBJECTS = st.dictionaries(KEYS, NESTED, max_size=3)
LISTS = st.lists(NESTED, max_size=3)
SMALL = st.none() | st.integers(-(2**31), 2**31 - 1)


def _struct(**fields: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.fixed_dictionaries(dict(fields))


_INTS = [
    Kind(
        f"{'' if signed else 'u'}int{bits}",
        _ints(bits, signed),
        getattr(pa, f"{'' if signed else 'u'}int{bits}")(),
        "decimal(20,0)" if (bits, signed) == (64, False) else "bigint",
        "number",
        sample=(0, -(1 << bits - 1) if signed else (1 << bits) - 1),
    )
    for bits in (8, 16, 32, 64)
    for signed in (True, False)
]
_DECIMALS = [
    Kind(
        f"decimal({p},{s})",
        decimals(p, s),
        pa.decimal128(p, s),
        f"decimal({p},{s})",
        "number",
        sample=(Decimal((0, (9,) * p, -s)), Decimal((1, (1,), -s))),
    )
    for p, s in ((3, 2), (9, 0), (18, 4), (20, 10), (38, 0), (38, 9), (38, 38))
]
_MOMENTS = [
    Kind(
        f"timestamp[{unit}]",
        MOMENTS.map(lambda m, s=step: m.replace(microsecond=m.microsecond // s * s)),  # type: ignore[misc]
        pa.timestamp(unit),
        "timestamp_ntz",
        "moment",
        sample=(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59)),
    )
    for unit, step in (("s", 1_000_000), ("ms", 1000), ("us", 1))
]

KINDS = [
    *_INTS,
    Kind("int of 128 bits", st.integers(-(10**38) + 1, 10**38 - 1), pa.decimal128(38, 0), "decimal(38,0)", "number",
         sample=(2**64, -(10**38) + 1)),
    Kind("int of more", st.integers(10**38, 10**41), None, "text", "number", plain=False, sample=(10**38,)),
    *_DECIMALS,
    Kind("decimal32", decimals(7, 2), pa.decimal32(7, 2), "decimal(7,2)", "number", sample=(Decimal("1.50"),)),
    Kind("decimal64", decimals(15, 2), pa.decimal64(15, 2), "decimal(15,2)", "number", sample=(Decimal("1.50"),)),
    Kind("decimal256, 38 digits", decimals(38, 2), pa.decimal256(40, 2), "decimal(38,2)", "number",
         sample=(Decimal("1.50"),)),
    Kind("decimal256, 76 digits", decimals(60, 20), pa.decimal256(76, 20), None, "number", plain=False,
         sample=(Decimal("1" + "0" * 39 + ".5"),)),
    Kind("float16", st.floats(width=16).map(float), pa.float16(), "double", "number", sample=(0.5, -0.0)),
    Kind("float32", st.floats(width=32).map(Single), pa.float32(), "double", "number",
         sample=(Single(0.5), Single(np.float32(0.1)))),
    Kind("float64", DOUBLES, pa.float64(), "double", "number",
         sample=(0.1, -0.0, 5e-324)),
    Kind("NaN and infinities", st.sampled_from([float("nan"), float("inf"), float("-inf")]), pa.float64(), "double",
         "number", sample=(float("nan"), float("inf"), float("-inf"))),
    Kind("text", TEXTS, pa.string(), "text", "text", sample=("", '"', "a\r\nb", "007", "日本語", "null")),
    Kind("text with NUL", st.sampled_from(["\0", "a\0b", "a"]), pa.string(), "text", "text", plain=False,
         sample=("a\0b",)),
    Kind("list of text with NUL", st.lists(st.sampled_from(["\0", "a"]), max_size=2), pa.list_(pa.string()), None,
         "list", plain=False, sample=(["a\0b"],)),
    Kind("large text", TEXTS, pa.large_string(), "text", "text", sample=("a",)),
    Kind("text view", TEXTS, pa.string_view(), "text", "text", sample=("a",)),
    Kind("dictionary of text", TEXTS, pa.dictionary(pa.int8(), pa.string()), "text", "text", sample=("a",)),
    Kind("runs of text", TEXTS, pa.run_end_encoded(pa.int32(), pa.string()), "text", "text", sample=("a",)),
    Kind("bool", st.booleans(), pa.bool_(), "bool", "bool", sample=(True, False)),
    Kind("date", DATES, pa.date32(), "date", "date", sample=(date.min, date.max)),
    Kind("date64", DATES, pa.date64(), "date", "date", sample=(date.min, date.max)),
    *_MOMENTS,
    Kind("timestamp[ns], whole us", NANOS.map(lambda n: Nano(n // 1000 * 1000)).filter(lambda n: n > -(2**63)),
         pa.timestamp("ns"), "timestamp_ntz", "moment", sample=(Nano(1_700_000_000_123_456_000),)),
    Kind("timestamp[ns]", NANOS, pa.timestamp("ns"), None, "moment", plain=False, sample=(Nano(1),)),
    Kind("timestamp with zone", ZONED, pa.timestamp("us", "UTC"), "timestamp", "zoned",
         sample=(datetime(2024, 3, 31, 1, 30, tzinfo=timezone(timedelta(hours=2))), datetime.max.replace(tzinfo=UTC))),
    Kind("timestamp with another zone", INSIDE, pa.timestamp("us", "America/New_York"), "timestamp", "zoned",
         sample=(datetime(2024, 3, 31, 1, 30, tzinfo=timezone(timedelta(hours=2))),)),
    Kind("time", st.times(), pa.time64("us"), "time", "time", sample=(time(0), time(23, 59, 59, 999_999))),
    Kind("time32", st.times().map(lambda t: t.replace(microsecond=0)), pa.time32("s"), "time", "time",
         sample=(time(1, 2, 3),)),
    Kind("time64[ns]", st.times(), pa.time64("ns"), "time", "time", sample=(time(1, 2, 3, 4),)),
    Kind("binary", st.binary(max_size=8), pa.binary(), "binary", "binary", sample=(b"", b"\0\xff")),
    Kind("large binary", st.binary(max_size=8), pa.large_binary(), "binary", "binary", sample=(b"a",)),
    Kind("fixed-size binary", st.binary(min_size=3, max_size=3), pa.binary(3), "binary", "binary", sample=(b"abc",)),
    Kind("uuid", st.uuids(), pa.uuid(), "text", "text", sample=(UUID(int=1),)),
    Kind("object", OBJECTS, None, "json", "json", sample=({"a": 12345678901234567890, "b": [Decimal("1.10"), None]},)),
    Kind("list", LISTS, None, "json", "json", sample=([], [1, "a", None])),
    Kind("JSON text", OBJECTS.map(lambda o: "{}" if not o else '{"a": 1.10}'), pa.json_(pa.string()), "json", "json",
         sample=('{"a": 1.10}',)),
    Kind("list<int>", st.lists(SMALL, max_size=3), pa.list_(pa.int32()), "json", "list<int>", sample=([], [1, 2])),
    Kind("list<double>", st.lists(st.none() | DOUBLES, max_size=3), pa.list_(pa.float64()), None, "list<int>",
         plain=False, sample=([0.1, 1.0],)),
    Kind("large list", st.lists(SMALL, max_size=3), pa.large_list(pa.int64()), "json", "list<int>", sample=([1],)),
    Kind("list<text>", st.lists(st.none() | TEXTS, max_size=3), pa.list_(pa.string()), "json", "list", sample=(["a"],)),
    Kind("list of lists", st.lists(st.lists(SMALL, max_size=2), max_size=2), pa.list_(pa.list_(pa.int64())), "json",
         "list of lists", sample=([[1], []],)),
    Kind("fixed-size list", st.lists(SMALL, min_size=2, max_size=2), pa.list_(pa.int32(), 2), "json", "list<int>",
         sample=([1, 2],)),
    Kind("struct", _struct(a=SMALL, b=st.none() | TEXTS), pa.struct([("a", pa.int32()), ("b", pa.string())]), "json",
         "struct", sample=({"a": 1, "b": "x"}, {"a": None, "b": None})),
    Kind("struct, one field more", _struct(a=SMALL, b=st.none() | TEXTS, c=DOUBLES),
         pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())]), None, "struct", plain=False,
         sample=({"a": 1, "b": "x", "c": 0.5},)),
    Kind("struct, other order", _struct(b=st.none() | TEXTS, a=SMALL), pa.struct([("b", pa.string()),
         ("a", pa.int32())]), "json", "struct", sample=({"b": "x", "a": 1},)),
    Kind("list of structs", st.lists(_struct(a=SMALL, d=st.none() | DATES), max_size=2),
         pa.list_(pa.struct([("a", pa.int32()), ("d", pa.date32())])), "json", "list of structs",
         sample=([{"a": 1, "d": date(2024, 1, 5)}],)),
    Kind("map", st.dictionaries(KEYS, SMALL, max_size=3), pa.map_(pa.string(), pa.int32()), "json", "map",
         sample=({"a": 1, "": None},)),
    Kind("duration", st.integers(-(10**9), 10**9).map(lambda s: timedelta(seconds=s)), pa.duration("us"), None, "",
         plain=False, sample=(timedelta(1),)),
    Kind("time with zone", st.times().map(lambda t: t.replace(tzinfo=UTC)), None, None, "", plain=False,
         sample=(time(1, tzinfo=UTC),)),
    Kind("complex number", st.just(1j), None, None, "", plain=False, sample=(1j,)),
    Kind("int and double", st.integers(-(2**53) - 2, 2**53 + 2) | DOUBLES, None, "double", "number", plain=False,
         sample=(1, 1.5)),
    Kind("int and decimal", st.integers() | decimals(10, 3), None, "decimal(38,9)", "number", plain=False,
         sample=(1, Decimal("1.5"))),
    Kind("double and decimal", DOUBLES | decimals(10, 3), None, None, "number", plain=False,
         sample=(1.5, Decimal("1.5"))),
    Kind("bool and int", st.booleans() | st.integers(0, 7), None, None, "bool", plain=False, sample=(True, 7)),
    Kind("int and text", st.integers() | TEXTS, None, None, "text", plain=False, sample=(1, "a")),
    Kind("object and text", OBJECTS | TEXTS, None, None, "json", plain=False, sample=({"a": 1}, "a")),
    Kind("date and timestamp", DATES | MOMENTS, None, None, "date", plain=False,
         sample=(date(2024, 1, 1), datetime(2024, 1, 1, 1))),
    Kind("with and without zone", ZONED | MOMENTS, None, None, "moment", plain=False,
         sample=(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1))),
]  # fmt: skip

BY_NAME = {kind.name: kind for kind in KINDS}
FAMILIES: dict[str, list[Kind]] = {}
for _kind in KINDS:
    FAMILIES.setdefault(_kind.family, []).append(_kind)


def holds(test: Callable[[Kind], bool]) -> list[Kind]:
    """The kinds for which a test holds."""
    return [kind for kind in KINDS if test(kind)]

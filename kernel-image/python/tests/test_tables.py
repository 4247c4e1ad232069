"""Tables as data: always said, never slow, never large."""

from __future__ import annotations

import datetime
import decimal
import json
import random
import time

import pytest

from cellbox_kernel import pandas_columns, tables
from cellbox_kernel.formatters import DataFormatter
from cellbox_kernel.messages import pack
from cellbox_kernel.plain_values import PlainValues

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

LIMITS = (100_000, 1_000_000)
DAY = datetime.timedelta(days=1)


class Mute:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


def contains_itself():
    loop = [1]
    loop.append(loop)
    return loop


# What a cell of an object column may hold.
VALUES = [
    None, True, 0, -1, 2**53, 2**64, 10**5000, 1.5, float("nan"), float("-inf"), 1j, "", "a", "\ud800", "\u2028",
    b"\xff", bytearray(b"a"), memoryview(b"a"), (), [], {}, {1: {2: 3}}, {10**5000: 1}, {Mute(): 1}, "é😀", Mute,
    {"\ud800": "\udfff"}, contains_itself(), Mute(), [Mute()], object(), lambda: 1, decimal.Decimal("NaN"), DAY,
    datetime.date(1, 1, 1), datetime.datetime.max, datetime.time(1), pd.NA, pd.NaT, pd.Timestamp("2020", tz="UTC"),
    pd.Timedelta(1), pd.Period("2020"), pd.Interval(0, 1), pd.DataFrame({"a": [1]}), pd.Series([1]), np.nan, np.int8(1),
    np.float16("inf"), np.longdouble(1), np.datetime64("NaT"), np.timedelta64(5, "D"), np.array([[1, np.nan]]),
    np.str_("a"), decimal.Decimal("1.10"),
    np.ma.masked, np.array([], dtype=object), range(3), {1, 2}, frozenset("a"), iter([]), type("S", (str,), {})("s"),
]  # fmt: skip

COLUMNS = {
    "categorical": pd.Categorical(["x", None, "x"]),
    "categorical of integers": pd.Categorical([2**60, 1, None]),
    "categorical of dates": pd.Categorical(pd.to_datetime(["2020", None, "2021"])),
    "period": pd.period_range("2020", periods=3, freq="M"),
    "interval": pd.interval_range(0, 3),
    "sparse": pd.arrays.SparseArray([0, 1.5, np.nan]),
    "nullable": pd.array([1, None, 3], dtype="UInt8"),
    "nullable float": pd.array([1.5, None, np.inf], dtype="Float64"),
    "boolean": pd.array([True, None, False], dtype="boolean"),
    "string": pd.array(["a", None, "\u2028"], dtype="string"),
    "unsigned": np.array([2**64 - 1, 0, 1], dtype="uint64"),
    "half": np.array([1, np.inf, np.nan], dtype="float16"),
    "long double": np.array([1, np.inf, np.nan], dtype="longdouble"),
    "complex": np.array([1j, np.nan, 0]),
    "seconds": np.array(["0001-01-01", "NaT", "20000-01-01"], dtype="datetime64[s]"),
    "spans": np.array([2**50, 0, -1], dtype="timedelta64[s]"),
    "zoned": pd.to_datetime(["2020-01-01", None, "2020-07-01"]).tz_localize("Europe/Paris"),
    "old zone": pd.to_datetime(["1800-01-01", None, "2020-07-01"]).tz_localize("Europe/Paris"),
}


def data_of(table):
    """As the kernel sends it."""
    found = tables.table_columns(table, *LIMITS)
    assert found is not None
    columns, rows, _ = found
    data = json.loads(pack(columns), parse_constant=pytest.fail)
    assert all(len(values) == rows for values in data.values())
    assert len(data) == len(columns)
    return data


@pytest.mark.parametrize("seed", range(40))
def test_any_table_becomes_plain_columns(seed):
    pick = random.Random(seed)
    rows = pick.choice([0, 1, 3, 100])
    frame = pd.DataFrame(index=range(rows))
    for _ in range(pick.randrange(6)):
        if rows == 3 and pick.random() < 0.5:
            column = pd.Series(pick.choice(list(COLUMNS.values())), index=frame.index)
        else:
            column = pd.Series([None] * rows, dtype=object, index=frame.index)
            for at in range(rows):
                column.iat[at] = pick.choice(VALUES)
        frame[len(frame.columns)] = column
    names = ["a", "a", "a.1", 1, 1.0, ("x", 1), None, "\ud800", "\udfff", Mute(), pd.NaT, 10**5000, b"a", ""]
    frame.columns = pd.Index([pick.choice(names) for _ in frame.columns], dtype=object, tupleize_cols=False)
    assert len(data_of(frame)) == frame.shape[1]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_says_the_same_as_its_single_values(name):
    series = pd.Series(COLUMNS[name])
    plain = PlainValues()
    assert pandas_columns.plain_column(series, plain) == plain.column(series.tolist())


@pytest.mark.parametrize("zone", [None, "UTC", "America/St_Johns", "Asia/Kathmandu"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_precision_are_written_as_single_ones_are(zone, unit):
    pick = random.Random(unit)
    fractions = [0, 0, 5 * 10**8, 1000, 1]
    moments = [pick.randrange(-(10**9), 4 * 10**9) * 10**9 + pick.choice(fractions) for _ in range(200)]
    series = pd.Series(pd.to_datetime([None, *moments]).as_unit(unit).tz_localize(zone))
    assert pandas_columns.plain_column(series, PlainValues()) == [value.isoformat() for value in series.tolist()]
    if zone is None and unit == "ns":
        spans = pd.Series(pd.to_timedelta([None, *moments, 0, -1]))
        texts = ["NaT", *(span.isoformat() for span in spans.tolist()[1:])]
        assert pandas_columns.plain_column(spans, PlainValues()) == texts


def test_an_object_that_only_looks_like_a_table_is_none():
    assert tables.table_columns({"a": [1]}, *LIMITS) is None
    assert tables.table_columns(pd.DataFrame, *LIMITS) is None


def test_a_subclass_that_breaks_has_no_data():
    class Broken(pd.DataFrame):
        @property
        def iloc(self):
            raise RuntimeError("broken")

    assert DataFormatter()(Broken({"a": [1]})) is None


LARGE = {
    "rows": lambda: pd.DataFrame({"a": np.arange(10_000_000)}),
    "columns": lambda: pd.DataFrame(np.zeros((100, 10_000))),
    "text": lambda: pd.DataFrame({"a": ["x" * 1_000_000] * 100_000, "b": 1}),
    "bytes": lambda: pd.DataFrame({"a": [b"x" * 1_000_000] * 10_000}),
    "nested": lambda: pd.DataFrame({"a": [{"x": [1, [2]] * 10}] * 100_000}),
    "text in the last rows": lambda: pd.DataFrame({"a": ["x"] * 1000 + ["x" * 1_000_000] * 1000}),
    "one cell of all": lambda: pd.DataFrame({"a": ["x" * 100_000_000, "y"]}),
    "decimals": lambda: pd.DataFrame({i: [decimal.Decimal(i)] * 100_000 for i in range(4)}),
    "times": lambda: pd.DataFrame({i: pd.date_range("2020", periods=100_000, freq="s", tz="UTC") for i in range(4)}),
    "surrogates": lambda: pd.DataFrame({i: ["a\ud800"] * 100_000 for i in range(4)}),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_table_is_cut_short_quickly_and_counted(kind):
    frame = LARGE[kind]()
    formatter = DataFormatter()
    for _ in range(2):  # others may make it slow once
        started = time.process_time()
        answer = formatter(frame)
        whole = {"rows": len(frame), "total_rows": len(frame)}
        data, metadata = answer if isinstance(answer, tuple) else (answer, whole)
        packed = pack(data)
        # Half a second on a quiet machine.
        quick = time.process_time() - started < 2
        if quick:
            break
    assert quick
    assert len(packed) < 48 * 1024 * 1024
    assert metadata["total_rows"] == len(frame)
    assert {len(values) for values in data.values()} == {metadata["rows"]}


def test_tables_of_polars_have_plain_columns():
    pl = pytest.importorskip("polars")
    table = pl.DataFrame(
        {
            "list": [[1, None], None],
            "struct": [{"a": b"\xff"}, None],
            "span": [DAY, None],
            "large": pl.Series([2**100, None], dtype=pl.Int128),
            "decimal": [decimal.Decimal("1.10"), None],
            "kind": pl.Series(["a", None], dtype=pl.Categorical),
            "object": pl.Series([Mute(), None], dtype=pl.Object),
        }
    )
    data = data_of(table)
    assert data["list"] == [[1, None], None] and data["large"] == [str(2**100), None]
    assert data["struct"] == [{"a": "/w=="}, None] and data["span"] == ["P1DT0H0M0S", None]
    assert data_of(pl.DataFrame()) == {}
    answer = DataFormatter()(pl.DataFrame({"n": range(1_000_000)}))
    assert answer[1] == {"rows": 100_000, "total_rows": 1_000_000}


def test_tables_of_pyarrow_have_plain_columns_also_of_values_python_lacks():
    pa = pytest.importorskip("pyarrow")
    columns = {
        "far": pa.array([2**31 - 1, None], pa.int32()).cast(pa.date32()),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
        "kind": pa.array(["a", None]).dictionary_encode(),
        "broken": pa.array([b"\xff", b"ok"]).view(pa.string()),
        "fine": pa.array([1, None], pa.timestamp("ns")),
    }
    data = data_of(pa.table(columns))
    assert data["map"] == [[["a", 1]], None] and data["kind"] == ["a", None]
    assert data["broken"][1] == "ok" and data["fine"] == ["1970-01-01T00:00:00.000000001", None]
    assert data_of(pa.record_batch({"a": [1]})) == {"a": [1]}
    assert data_of(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])) == {"a": [1], "a.1": [2]}


def test_a_pyarrow_table_has_html(kernel):
    pytest.importorskip("pyarrow")
    execution = kernel.run("import pyarrow as pa\npa.table({'<b>': list(range(1000)), 's': [None] * 1000})")
    assert "&lt;b&gt;" in execution.bundle["text/html"] and "1000 rows × 2 columns" in execution.bundle["text/html"]
    assert execution.bundle["text/html"].count("<tr>") == 22
    assert (execution.error, execution.stderr) == (None, [])

"""Whatever the ledger holds: each nanosecond in one class, none twice, none lost."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from longhaul.resilience.accounting import account
from longhaul.resilience.ledger import CLASSES, LEDGER, Span, span_row

EPOCH = 1_750_000_000_000_000_000


@st.composite
def spans(draw: st.DrawFn) -> dict[str, object]:
    start = EPOCH + draw(st.integers(0, 10**6))
    shares = draw(st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 10**5)))
    end = start + sum(shares.values())
    segment, samples = draw(st.integers(1, 9)), draw(st.integers(0, 99))
    return span_row(
        Span(segment=segment, start_ns=start, end_ns=end, step=draw(st.integers(0, 99)), samples=samples, shares=shares)
    )


@st.composite
def marks(draw: st.DrawFn) -> dict[str, object]:
    at = EPOCH + draw(st.integers(0, 10**6))
    state = draw(st.sampled_from(["began", "startup", "waiting", "paused", "ended"]))
    row: dict[str, object] = dict.fromkeys(LEDGER.names, 0)
    return row | {"source": "driver", "state": state, "start_ns": at, "end_ns": at, "time_s": at / 1e9}


@given(rows=st.lists(st.one_of(spans(), marks()), max_size=25), until=st.none() | st.integers(0, 2 * 10**6))
def test_every_nanosecond_is_in_exactly_one_class(rows: list[dict[str, object]], until: int | None) -> None:
    until_ns = None if until is None else EPOCH + until
    found = account(pa.Table.from_pylist(rows, schema=LEDGER), until_ns)
    assert all(share >= 0 for share in found.classes.values())
    at = 0
    for interval in found.intervals:
        assert interval.start_ns >= at  # none twice
        at = interval.end_ns
        assert sum(interval.shares.values()) == interval.end_ns - interval.start_ns
        assert all(share >= 0 for share in interval.shares.values())
    assert found.total_ns == sum(interval.end_ns - interval.start_ns for interval in found.intervals)
    moments = [int(str(row[name])) for row in rows for name in ("start_ns", "end_ns")]
    if moments and not any(row["state"] == "ended" for row in rows):  # none lost
        last = max([*moments, *([until_ns] if until_ns is not None else [])])
        assert found.total_ns == last - min(moments)
    assert 0.0 <= found.goodput <= 1.0


@given(rows=st.lists(st.one_of(spans(), marks()), max_size=12), data=st.data())
def test_the_order_of_rows_does_not_matter(rows: list[dict[str, object]], data: st.DataObject) -> None:
    """Rows of the very same moment aside: there the order is all there is."""
    unique = list({(row["start_ns"], row["end_ns"]): row for row in rows}.values())
    shuffled = data.draw(st.permutations(unique))
    assert account(pa.Table.from_pylist(shuffled, schema=LEDGER)) == account(pa.Table.from_pylist(unique, schema=LEDGER))

"""Hand-made ledgers: what lies between the spans of rank 0 is classed by the driver's marks, and nothing counts twice."""

from __future__ import annotations

import pyarrow as pa
import pytest

from longhaul.resilience.accounting import Account, account
from longhaul.resilience.ledger import CLASSES, LEDGER, Span, TimeClass, span_row


def span(start: int, end: int, *, segment: int = 1, step: int = 0, samples: int = 0, **shares: int) -> dict[str, object]:
    """A span; what no share says is productive."""
    named: dict[TimeClass, int] = {name: shares[name] for name in CLASSES if name in shares}
    named["productive"] = end - start - sum(shares.values())
    return span_row(Span(segment=segment, start_ns=start, end_ns=end, step=step, samples=samples, shares=named))


def mark(at: int, state: str) -> dict[str, object]:
    return dict.fromkeys(LEDGER.names, 0) | {"source": "driver", "state": state, "start_ns": at, "end_ns": at, "time_s": 0.0}


def add_up(*rows: dict[str, object], until: int | None = None) -> Account:
    found = account(pa.Table.from_pylist(list(rows), schema=LEDGER), until)
    for earlier, later in zip(found.intervals, found.intervals[1:], strict=False):
        assert earlier.end_ns <= later.start_ns
    assert found.total_ns == sum(interval.end_ns - interval.start_ns for interval in found.intervals)
    return found


def classes(found: Account) -> dict[str, int]:
    return {name: share for name, share in found.classes.items() if share}


def test_an_empty_ledger_is_nothing() -> None:
    found = add_up()
    assert (found.total_ns, found.goodput, found.samples_per_s, found.segments) == (0, 0.0, None, 0)


def test_a_straight_run() -> None:
    found = add_up(
        mark(0, "began"), mark(5, "startup"), span(10, 110, step=4, samples=32, data=20, checkpoint=5), mark(112, "ended")
    )
    assert classes(found) == {"startup": 12, "productive": 75, "data": 20, "checkpoint": 5}
    assert found.goodput == pytest.approx(75 / 112)
    assert found.samples_per_s == pytest.approx(32 / 75e-9)
    assert (found.steps, found.segments) == (4, 1)


def test_after_the_last_sign_of_a_worker_nobody_has_noticed_until_the_driver_says_so() -> None:
    found = add_up(
        mark(0, "began"),
        span(10, 100),
        mark(130, "startup"),
        mark(131, "waiting"),
        mark(171, "startup"),
        span(180, 200, segment=2),
        mark(200, "ended"),
    )
    assert classes(found) == {"startup": 10 + 1 + 9, "productive": 110, "hung": 30, "waiting": 40}
    assert found.segments == 2


def test_a_driver_that_died_without_a_word_left_nobody_there() -> None:
    found = add_up(mark(0, "began"), span(10, 100), mark(500, "began"), span(520, 600, segment=2), mark(600, "ended"))
    assert classes(found) == {"startup": 10 + 20, "productive": 170, "waiting": 400}


def test_a_driver_that_died_while_it_waited_for_capacity_was_waiting() -> None:
    found = add_up(mark(0, "began"), mark(10, "waiting"), mark(300, "began"), span(310, 320), mark(320, "ended"))
    assert classes(found) == {"startup": 10 + 10, "waiting": 290, "productive": 10}


def test_a_pause_counts_and_the_time_after_an_end_does_not() -> None:
    rows = [mark(0, "began"), span(10, 100), mark(102, "paused"), mark(1102, "began"), span(1110, 1200, segment=2)]
    assert classes(add_up(*rows)) == {"startup": 10 + 2 + 8, "productive": 180, "paused": 1000}
    ended = [mark(102, "ended") if row["state"] == "paused" else row for row in rows]
    assert classes(add_up(*ended)) == {"startup": 10 + 2 + 8, "productive": 180}


def test_a_paused_run_is_counted_to_the_present() -> None:
    assert classes(add_up(span(0, 10), mark(10, "paused"), until=70)) == {"productive": 10, "paused": 60}
    assert classes(add_up(span(0, 10), mark(10, "ended"), until=70)) == {"productive": 10}
    assert classes(add_up(span(0, 10), until=70)) == {"productive": 10, "hung": 60}


def test_a_driver_that_knew_before_rank_0_wrote_its_last_words() -> None:
    """Rank 1 dies; rank 0 notices late, or its clock is ahead."""
    found = add_up(span(0, 100), mark(90, "startup"), span(150, 160, segment=2))
    assert classes(found) == {"productive": 110, "startup": 50}


def test_a_mark_at_the_very_end_of_a_span_is_in_force() -> None:
    assert classes(add_up(span(0, 100), mark(100, "waiting"), span(150, 160, segment=2))) == {"productive": 110, "waiting": 50}


def test_an_overlap_counts_once_and_the_one_that_began_first_keeps_it() -> None:
    """A rank 0 that did not know it was replaced, and another whose clock is behind."""
    found = add_up(span(0, 100), span(60, 160, segment=2, checkpoint=50), span(70, 80, segment=3))
    assert found.total_ns == 160
    assert classes(found) == {"productive": 100 + 30, "checkpoint": 30}


def test_a_run_that_never_got_a_worker() -> None:
    assert classes(add_up(mark(0, "began"), mark(3, "waiting"), until=63)) == {"startup": 3, "waiting": 60}


def test_rows_may_come_in_any_order() -> None:
    rows = [mark(0, "began"), span(10, 100), mark(130, "startup"), span(140, 200, segment=2), mark(201, "ended")]
    assert add_up(*reversed(rows)) == add_up(*rows)

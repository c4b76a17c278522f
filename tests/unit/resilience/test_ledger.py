"""The stopwatch is always in one class, and what it hands out sums to the time that passed, in whole nanoseconds."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longhaul.recipe import parse
from longhaul.resilience import ledger
from longhaul.resilience.ledger import CLASSES, Span, Stopwatch, TimeClass, ledger_writer, mark, read_ledger, span_row
from longhaul.resilience.run_directory import RunDirectory

RECIPE = "{name: r, model: {name: test_resnet}, data: {kind: digits}, training: {steps: 9}}"


class Clock:
    """Stands for `time`."""

    def __init__(self) -> None:
        self.now = 5

    def time_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.now

    def monotonic_ns(self) -> int:
        return self.now


@given(turns=st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 10**12), st.booleans()), max_size=30))
def test_spans_join_without_a_gap_and_their_shares_sum_to_their_length(turns: list[tuple[TimeClass, int, bool]]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "time", clock)
        watch = Stopwatch(1, 0, 0)
        begin = clock.time_ns()
        spans: list[Span] = []
        for to, passes, cut in turns:
            clock.now += passes
            watch.switch(to)
            if cut:
                spans.append(watch.cut())
        clock.now += 7
        spans.append(watch.cut())
    assert spans[0].start_ns == begin
    assert spans[-1].end_ns == clock.time_ns()
    for span in spans:
        assert sum(span.shares.values()) == span.end_ns - span.start_ns
    assert [span.end_ns for span in spans[:-1]] == [span.start_ns for span in spans[1:]]


def test_steps_up_to_the_furthest_are_recomputed_and_their_samples_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    watch = Stopwatch(2, high_water=3, step=1)
    for step in (1, 2, 3, 4):
        watch.training(step)
        clock.now += 10
        watch.stepped(step + 1, samples=8)
    span = watch.cut()
    assert span.shares["recomputed"] == 20
    assert span.shares["productive"] == 20
    assert (span.step, span.samples) == (5, 16)


def test_two_threads_lose_no_time(tmp_path: Path) -> None:
    """The flight recorder reads while training turns."""
    watch, spans = Stopwatch(1, 0, 0), []
    reader = threading.Thread(target=lambda: [watch.span() for _ in range(3000)])
    reader.start()
    for number in range(3000):
        watch.switch("data" if number % 2 else "productive")
        if number % 100 == 0:
            spans.append(watch.cut())
    reader.join()
    spans.append(watch.cut())
    assert all(sum(span.shares.values()) == span.end_ns - span.start_ns for span in spans)
    assert all(share >= 0 for span in spans for share in span.shares.values())


def test_spans_and_marks_are_read_back(tmp_path: Path) -> None:
    run = RunDirectory.create(str(tmp_path), "r", parse(RECIPE))
    mark(run, "startup", segment=1)
    with ledger_writer(run) as writer:
        writer.append(
            **span_row(Span(segment=1, start_ns=10, end_ns=30, step=4, samples=32, shares={"productive": 15, "data": 5}))
        )
    rows = {row["source"]: row for row in read_ledger(run).to_pylist()}
    assert rows["driver"]["state"] == "startup"
    assert rows["driver"]["start_ns"] == rows["driver"]["end_ns"]
    assert (rows["worker"]["productive_ns"], rows["worker"]["data_ns"], rows["worker"]["hung_ns"]) == (15, 5, 0)


def test_what_is_given_up_was_hung_from_its_beginning_and_reading_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    watch = Stopwatch(1, 0, 0)
    clock.now += 5
    watch.training(0)
    for _ in range(3):
        clock.now += 100
        watch.span()  # the flight recorder looks in between
    watch.give_up()
    clock.now += 1
    assert watch.cut().shares == {"startup": 5, "hung": 301}


def test_the_class_in_force_comes_last_in_an_open_span(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    watch = Stopwatch(1, 0, 0)
    for to in ("productive", "data", "productive"):
        clock.now += 10
        watch.switch(to)  # type: ignore[arg-type]
    assert list(watch.span().shares) == ["startup", "data", "productive"]

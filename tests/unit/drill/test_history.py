"""From the notes of all attempts: which samples made the final weights, what was computed twice, how long nothing moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.data.order import SampleOrder
from longhaul.drill.board import Note, Worker
from longhaul.drill.history import History, stream_problems

BATCH, RANKS, STEPS = 8, 2, 10
ORDER = SampleOrder(30, "notes", 1)


class Notes:
    """Writes what the ranks of successive attempts would write, a second a step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now_s, self.attempt = folder, 1000.0, 0

    def start(self) -> None:
        self.attempt += 1
        self.turn = 0
        for rank in range(RANKS):
            self._write(rank, Worker(attempt=self.attempt, rank=rank, world_size=RANKS, pid=rank, node="n").model_dump_json())

    def step(self, number: int, order: SampleOrder = ORDER, ranks: tuple[int, ...] = (0, 1)) -> None:
        """Step `number` from 0, at the positions that follow those of the steps before."""
        cursor = 0
        for _ in range(number):
            cursor = order.take(cursor, BATCH).cursor
        stretch = order.take(cursor, BATCH)
        for rank in ranks:
            positions, indices = stretch.positions[rank::RANKS].tolist(), stretch.indices[rank::RANKS].tolist()
            note = Note(time_s=self.now_s, pause_s=0.5, turn=self.turn, positions=positions, indices=indices)
            self._write(rank, note.model_dump_json())
        self.now_s += 1.0

    def _write(self, rank: int, line: str) -> None:
        with (self.folder / f"{self.attempt}-{rank:05d}.jsonl").open("a") as file:
            file.write(line + "\n")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


def _history(notes: Notes) -> History:
    history = History(notes.folder, BATCH)
    history.read()
    return history


def _problems(notes: Notes, order: SampleOrder = ORDER) -> list[str]:
    return stream_problems(_history(notes).passes, order, STEPS * BATCH, BATCH)


def test_a_straight_run_has_seen_each_sample_in_its_turn(notes: Notes) -> None:
    notes.start()
    for step in range(STEPS):
        notes.step(step)
    assert _problems(notes) == []


def test_what_a_killed_attempt_read_behind_its_last_checkpoint_does_not_count(notes: Notes) -> None:
    notes.start()
    for step in range(6):
        notes.step(step)
    notes.step(6, ranks=(0,))  # rank 1 was killed in it
    notes.start()
    for step in range(4, STEPS):
        notes.step(step)
    history = _history(notes)
    assert stream_problems(history.passes, ORDER, STEPS * BATCH, BATCH) == []
    assert history.lost_steps((1, 0), (2, 0)) == 3
    assert history.recovered_s((1, 0)) == 1010.0  # 3 s of doing again, from 1007 on
    assert history.lost_seconds(1007.0, 1010.0) == 2.0  # a step takes 1 s, and one was new


def test_a_rollback_with_an_excluded_sample_counts_as_the_run_without_it(notes: Notes) -> None:
    without = SampleOrder(30, "notes", 1, excluded=frozenset({int(ORDER.take(2 * BATCH, 1).indices[0])}))
    notes.start()
    for step in range(3):
        notes.step(step)
    notes.turn = 1
    for step in range(1, STEPS):
        notes.step(step, without)
    assert _problems(notes, without) == []
    assert _problems(notes) != []


def test_skipped_repeated_and_foreign_samples_are_found(notes: Notes) -> None:
    other = SampleOrder(30, "notes", 2)
    notes.start()
    for step in range(STEPS):
        if step != 3:  # the cursor was lost
            notes.step(step, other if step == 7 else ORDER)
    notes.step(5)
    assert _problems(notes) == [
        "never seen: 8 positions, the first is 24 (step 4)",
        "another sample: 6 positions, the first is 56 (step 8)",  # two of the eight are the same by chance
        "seen twice: 8 positions, the first is 40 (step 6)",
    ]


def test_half_a_line_is_read_once_it_is_whole(notes: Notes) -> None:
    (notes.folder / "1-00000.jsonl").touch()
    history = _history(notes)
    notes.start()
    notes.step(0, ranks=(1,))
    whole = (notes.folder / "1-00001.jsonl").read_text()
    (notes.folder / "1-00001.jsonl").write_text(whole[:-20])
    history.read()
    assert history.passes == []
    (notes.folder / "1-00001.jsonl").write_text(whole)
    history.read()
    assert len(history.passes) == 1
    assert [worker.rank for worker in history.present()] == [0, 1]

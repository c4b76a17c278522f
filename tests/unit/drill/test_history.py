"""From the notes of all attempts: which samples made the final weights, what was computed twice, how long nothing moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from longhaul.data.order import SampleOrder
from longhaul.drill.board import Note, Worker
from longhaul.drill.history import History, Start, final_batches, stream_problems

BATCH, RANKS, STEPS = 8, 2, 10
ORDER = SampleOrder(30, "notes", 1)


class Notes:
    """Writes what the ranks of successive attempts would write, a second a step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now_s, self.attempt = folder, 1000.0, 0
        self.starts: list[Start] = []

    def start(self, step: int = 0) -> None:
        self.attempt += 1
        self.turn = 0
        self.starts.append(Start(self.now_s - 0.5, step))
        for rank in range(RANKS):
            self._write(rank, Worker(attempt=self.attempt, rank=rank, world_size=RANKS, pid=rank, node="n").model_dump_json())

    def step(
        self, number: int, order: SampleOrder = ORDER, *, ranks: tuple[int, ...] = (0, 1), shares: tuple[int, int] = (0, 1)
    ) -> None:
        """Step `number` from 0, at the positions that follow those of the steps before; each of `ranks` reads its share."""
        cursor = 0
        for _ in range(number):
            cursor = order.take(cursor, BATCH).cursor
        stretch = order.take(cursor, BATCH)
        for rank in ranks:
            positions, indices = (
                stretch.positions[shares[rank] :: RANKS].tolist(),
                stretch.indices[shares[rank] :: RANKS].tolist(),
            )
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
    batches = final_batches(_history(notes).passes, notes.starts, BATCH)
    return stream_problems(batches, order, STEPS, BATCH)


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
    notes.start(4)
    for step in range(4, STEPS):
        notes.step(step)
    assert _problems(notes) == []
    history = _history(notes)
    assert history.lost_steps((1, 0), (2, 0)) == 3
    assert history.recovered_s((1, 0)) == 1010.0  # 3 s of doing again, from 1007 on
    assert history.lost_seconds(1007.0, 1010.0) == 2.0  # a step takes 1 s, and one was new


def test_a_rollback_with_an_excluded_sample_counts_as_the_run_without_it(notes: Notes) -> None:
    without = SampleOrder(30, "notes", 1, excluded=frozenset({int(ORDER.take(2 * BATCH, 1).indices[0])}))
    notes.start()
    for step in range(3):
        notes.step(step)
    notes.turn = 1
    notes.starts.append(Start(notes.now_s - 0.5, 1))
    for step in range(1, STEPS):
        notes.step(step, without)
    assert _problems(notes, without) == []
    assert _problems(notes) != []


def test_a_resume_behind_its_checkpoint_is_found_although_a_lost_attempt_had_read_what_it_skips(notes: Notes) -> None:
    notes.start()
    for step in range(6):
        notes.step(step)
    notes.start(4)
    for step in range(5, STEPS):
        notes.step(step)
    assert _problems(notes) == [
        "6 steps saw other samples than their own, the first is step 5",
        "8 samples were not seen in their turn",
    ]


def test_a_rank_that_is_ahead_of_the_runs_record_does_not_count_as_an_earlier_line(notes: Notes) -> None:
    notes.start()
    for step in range(6):
        notes.step(step)
    notes.start(4)
    notes.starts.pop()
    notes.step(4, ranks=(1,))  # rank 0 was killed before it wrote anything
    notes.start(4)
    notes.starts[-1] = Start(notes.now_s + 0.5, 4)  # after rank 1's first pass, before that of rank 0
    notes.step(4, ranks=(1,))
    notes.step(4, ranks=(0,))
    for step in range(5, STEPS):
        notes.step(step)
    assert _problems(notes) == []


def test_skipped_repeated_and_foreign_samples_are_found(notes: Notes) -> None:
    notes.start()
    for step in [0, 1, 2, 3, 3, 5, 6, 7, 8]:
        notes.step(step)
    notes.step(9, SampleOrder(30, "notes", 2))
    assert _problems(notes) == [
        "2 steps saw other samples than their own, the first is step 5",
        "16 samples were not seen in their turn",
        "16 were seen once more, or out of turn",
    ]


def test_samples_that_two_ranks_read_are_found(notes: Notes) -> None:
    notes.start()
    for step in range(STEPS):
        notes.step(step, shares=(0, 0) if step == 4 else (0, 1))
    assert _problems(notes) == [
        "1 steps saw other samples than their own, the first is step 5",
        "4 samples were not seen in their turn",
        "4 were seen once more, or out of turn",
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

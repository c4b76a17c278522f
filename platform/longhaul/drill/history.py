"""What the workers' notes tell: how far the run is, what a fault cost it, and in the end which samples made it what it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from longhaul.data.order import SampleOrder
from longhaul.drill.board import Note, Worker

Line = tuple[int, int]
"""A line of history: attempt (a start of the workers) and turn (a rollback within it); later ones are greater."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of one rank."""

    line: Line
    worker: Worker
    note: Note


@dataclass(frozen=True)
class Gain:
    """A moment at which the run came to a step for the first time; `step` counts from 0."""

    time_s: float
    pause_s: float
    line: Line
    step: int


@dataclass
class History:
    """Follows a folder of notes; `read` takes in what is new.

    Attributes:
        folder: of the notes.
        batch: samples a step.
    """

    folder: Path
    batch: int
    workers: dict[tuple[int, int], Worker] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    newest: Line = (0, 0)
    _offsets: dict[Path, int] = field(default_factory=dict)
    _firsts: dict[Line, int] = field(default_factory=dict)
    _lasts: dict[Line, int] = field(default_factory=dict)

    def read(self) -> None:
        """Take in the lines that have come since."""
        new: list[Pass] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as stream:
                stream.seek(self._offsets.get(path, 0))
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            lines = whole.splitlines()
            attempt, rank = map(int, path.stem.split("-"))
            if lines and not self._offsets.get(path):
                self.workers[attempt, rank] = Worker.model_validate_json(lines.pop(0))
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            for line in lines:
                note = Note.model_validate_json(line)
                new.append(Pass((attempt, note.turn), self.workers[attempt, rank], note))
        for found in sorted(new, key=lambda found: found.note.time_s):
            self._take(found)

    def _take(self, found: Pass) -> None:
        self.passes.append(found)
        first, last = min(found.note.positions), max(found.note.positions)
        self._firsts[found.line] = min(first, self._firsts.get(found.line, first))
        self._lasts[found.line] = max(last, self._lasts.get(found.line, last))
        self.newest = max(self.newest, found.line)
        if not self.gains or last // self.batch > self.gains[-1].step:
            self.gains.append(Gain(found.note.time_s, found.note.pause_s, found.line, last // self.batch))

    @property
    def furthest(self) -> int:
        """The furthest step ever begun, from 0; -1 before the first."""
        return self.gains[-1].step if self.gains else -1

    @property
    def step(self) -> int:
        """Steps done on the present line of history (the one under way not counted)."""
        return max(self._lasts.get(self.newest, 0), 0) // self.batch

    def present(self) -> list[Worker]:
        """The workers of the newest attempt, by rank."""
        return [worker for (attempt, _), worker in sorted(self.workers.items()) if attempt == self.newest[0]]

    def recovered_s(self, since: Line) -> float | None:
        """When the run got further on a line after `since` than it had been on any up to it; None as long as it has not."""
        return next((gain.time_s for gain in self.gains if gain.line > since), None)

    def lost_steps(self, since: Line, until: Line) -> int:
        """Steps that were computed on a line from `since` on, and once more on a later one up to `until`."""
        lines = sorted(line for line in self._firsts if since <= line <= until)
        lost = 0
        for former, line in pairwise(lines):
            again = self._lasts[former] + 1 - self._firsts[line]
            lost += max(0, -(-again // self.batch))
        return lost

    def lost_seconds(self, since_s: float, until_s: float) -> float:
        """Time from `since_s` to `until_s`, less what the steps that the run got further in it take, pauses included."""
        usual = median([later.time_s - step.time_s - step.pause_s for step, later in pairwise(self.gains)] or [0.0])
        gained = sum(usual + step.pause_s for step in self.gains if since_s < step.time_s <= until_s)
        return max(until_s - since_s - gained, 0.0)


@dataclass(frozen=True)
class Start:
    """The run's own word: from this moment on it goes on from `step`."""

    time_s: float
    step: int


Batches = dict[int, list[tuple[int, int]]]
"""By step, from 0: the (position, index) of its samples, ascending."""


def final_batches(passes: list[Pass], starts: list[Start], batch: int) -> Batches:
    """What each step read, on the line of history that the final weights come from.

    A line goes on from the step that the run itself has named, and takes the place of all that former ones did from there on.
    """
    lines: dict[Line, list[Pass]] = {}
    for found in passes:
        lines.setdefault(found.line, []).append(found)
    batches: Batches = {}
    for line in sorted(lines):
        here = sorted(lines[line], key=lambda found: found.note.time_s)
        # Rank 0 writes the run's record before its own first pass; others may be a moment ahead of it.
        first_s = next((found.note.time_s for found in here if found.worker.rank == 0), None)
        if first_s is None:
            continue  # rank 0 has died before it: no step was completed
        begin = max((start.time_s, start.step) for start in [Start(0.0, 0), *starts] if start.time_s <= first_s)[1]
        batches = {step: samples for step, samples in batches.items() if step < begin}
        read: Counter[int] = Counter()
        for found in here:
            rank, size, note = found.worker.rank, found.worker.world_size, found.note
            step = begin + read[rank] // (batch // size)
            read[rank] += len(note.indices)
            batches[step] = sorted([*batches.get(step, []), *zip(note.positions, note.indices, strict=True)])
    return batches


def stream_problems(batches: Batches, order: SampleOrder, steps: int, batch: int) -> list[str]:
    """What is wrong with the samples that a run saw; empty where each came exactly once an epoch, in its turn.

    Args:
        batches: what its steps have read.
        order: of the run, with the excluded samples.
        steps: its length.
        batch: samples a step.
    """
    cursor, expected = 0, {}
    for step in range(steps):
        stretch = order.take(cursor, batch)
        expected[step] = list(zip(stretch.positions.tolist(), stretch.indices.tolist(), strict=True))
        cursor = stretch.cursor
    wrong = [step + 1 for step in sorted(expected.keys() | batches.keys()) if batches.get(step) != expected.get(step)]
    if not wrong:
        return []
    seen = Counter(sample for samples in batches.values() for sample in samples)
    due = Counter(sample for samples in expected.values() for sample in samples)
    never, twice = due - seen, seen - due
    found = [f"{len(wrong)} steps saw other samples than their own, the first is step {wrong[0]}"]
    found += [f"{never.total()} samples were not seen in their turn"] if never else []
    found += [f"{twice.total()} were seen once more, or out of turn"] if twice else []
    return found

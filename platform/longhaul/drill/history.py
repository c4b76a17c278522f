"""What the workers' notes tell: how far the run is, what a fault cost it, and in the end which samples made it what it is."""

from __future__ import annotations

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
            if lines and not self._offsets.get(path):
                worker = Worker.model_validate_json(lines.pop(0))
                self.workers[worker.attempt, worker.rank] = worker
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            attempt = int(path.name.split("-")[0])
            notes = [Note.model_validate_json(line) for line in lines]
            new += [Pass((attempt, note.turn), note) for note in notes]
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


@dataclass
class Stream:
    """The samples on the line of history that the final weights come from.

    Attributes:
        indices: by position.
        twice: positions that one and the same line has read twice.
    """

    indices: dict[int, int]
    twice: set[int]


def final_stream(passes: list[Pass]) -> Stream:
    """A line that begins at some position takes the place of all that former ones read from there on."""
    lines: dict[Line, list[Note]] = {}
    for found in passes:
        lines.setdefault(found.line, []).append(found.note)
    indices: dict[int, int] = {}
    twice: set[int] = set()
    for line in sorted(lines):
        begin = min(min(note.positions) for note in lines[line])
        indices = {position: index for position, index in indices.items() if position < begin}
        twice = {position for position in twice if position < begin}
        for note in lines[line]:
            twice |= indices.keys() & set(note.positions)
            indices.update(zip(note.positions, note.indices, strict=True))
    return Stream(indices, twice)


def stream_problems(passes: list[Pass], order: SampleOrder, total: int, batch: int) -> list[str]:
    """What is wrong with the samples that a run saw; empty where each came exactly once an epoch, in its turn.

    Args:
        passes: all forward passes of training.
        order: of the run, with the excluded samples.
        total: the run's length in positions.
        batch: samples a step.
    """
    expected: dict[int, int] = {}
    cursor = 0
    while cursor < total:
        stretch = order.take(cursor, batch)
        expected.update(zip(stretch.positions.tolist(), stretch.indices.tolist(), strict=True))
        cursor = stretch.cursor
    stream = final_stream(passes)
    seen = stream.indices
    findings = {
        "never seen": expected.keys() - seen.keys(),
        "seen though it should not be": seen.keys() - expected.keys(),
        "another sample": {p for p in expected.keys() & seen.keys() if expected[p] != seen[p]},
        "seen twice": stream.twice,
    }
    return [
        f"{what}: {len(positions)} positions, the first is {min(positions)} (step {min(positions) // batch + 1})"
        for what, positions in findings.items()
        if positions
    ]

"""Which members to leave out while deadlines are missed, and when to try them again. Pure logic: time is passed in.

When too many answers miss, of the members that had part in them the one that costs most for what it is worth goes, never the
only one. After a calm while it comes back on trial; if the misses come back with it, it goes again, and the next wait is longer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from longhaul.serving.detection.answers import Status

_TIMED = (Status.ON_TIME, Status.LATE)
"""Who had part in how long an answer took."""


class SheddingSettings(BaseModel):
    """When to leave members out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    window_s: float = Field(10.0, gt=0)
    """How far back answers count; also how long a trial lasts at least."""
    least_answers: int = Field(8, ge=1)
    """Fewer answers than this prove nothing."""
    bound: float = Field(0.2, gt=0, lt=1)
    """Of the answers, this share may miss: one in which a member was late."""
    persist_s: float = Field(2.0, ge=0)
    """From the first of these misses to the last it is so long at least: one hiccup, however many it hits, is none."""
    trial_answers: int = Field(4, ge=1)
    """As `least_answers`, of answers with a member that is on trial, and without `persist_s`: what was wrong before is believed
    sooner. A trial does not end before."""
    wait_s: float = Field(15.0, gt=0)
    """Calm before the first trial."""
    back_off: float = Field(2.0, ge=1)
    """How much longer the wait is after each failed trial."""
    longest_wait_s: float = Field(600.0, gt=0)
    head_room: float = Field(0.8, gt=0, le=1)
    """A trial begins only if the forecast with that member is within this share of the deadline."""


@dataclass
class _Absent:
    """A member that was shed."""

    since: float
    wait_s: float


@dataclass
class _Trial:
    """A member that is back for a try, and the answers in which it had part since then."""

    member: str
    since: float
    answers: int = 0
    missed: int = 0


class _Window:
    """The answers of the last `window_s`, counted as they come and go."""

    def __init__(self) -> None:
        self.misses: deque[float] = deque()
        self.timed: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self._answers: deque[tuple[float, Mapping[str, Status]]] = deque()

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, when: float, statuses: Mapping[str, Status]) -> None:
        self._answers.append((when, statuses))
        self._count(statuses, 1)
        if Status.LATE in statuses.values():
            self.misses.append(when)

    def drop_until(self, when: float) -> None:
        while self._answers and self._answers[0][0] <= when:
            self._count(self._answers.popleft()[1], -1)
        while self.misses and self.misses[0] <= when:
            self.misses.popleft()

    def without(self, member: str) -> _Window:
        """The same answers, as if this member had had no part in them."""
        rest = _Window()
        for when, statuses in self._answers:
            rest.add(when, {name: status for name, status in statuses.items() if name != member})
        return rest

    def _count(self, statuses: Mapping[str, Status], sign: int) -> None:
        for name, status in statuses.items():
            self.asked[name] += sign * (status is not Status.SHED)
            self.timed[name] += sign * (status in _TIMED)
            self.late[name] += sign * (status is Status.LATE)


@dataclass
class SheddingController:
    """Decides who is left out. Not thread-safe: one event loop uses it.

    Attributes:
        settings: when to act.
    """

    settings: SheddingSettings
    _window: _Window = field(default_factory=_Window)
    _absent: dict[str, _Absent] = field(default_factory=dict)
    _waits: dict[str, float] = field(default_factory=dict)
    _trial: _Trial | None = None
    _last_miss: float = float("-inf")

    @property
    def shed(self) -> frozenset[str]:
        """The members that are left out now."""
        return frozenset(self._absent)

    def misses(self, member: str, now: float) -> float:
        """Share of the window's answers with this member in which it was late, 0..1; 0 if there are none."""
        self._forget_old(now)
        asked = self._window.asked[member]
        return self._window.late[member] / asked if asked else 0.0

    def observe(self, now: float, statuses: Mapping[str, Status], costs: Mapping[str, float]) -> str | None:
        """Take note of an answer, and shed a member if that is due.

        Args:
            now: seconds on any clock that only goes forward.
            statuses: of the answer, by member; those that it was not to come from are not in it.
            costs: seconds of an engine for a unit of value, of all members.

        Returns:
            The member that is left out from now on, if any.
        """
        self._window.add(now, dict(statuses))
        self._forget_old(now)
        missed = Status.LATE in statuses.values()
        if missed:
            self._last_miss = now
        trial = self._trial
        if trial and statuses.get(trial.member) in _TIMED:
            trial.answers += 1
            trial.missed += missed
        if not self.settings.enabled:
            return None
        worst = self._worst(costs)
        if worst is not None:
            self._leave_out(worst, now)
        elif trial and trial.answers >= self.settings.trial_answers and now - trial.since >= self.settings.window_s:
            self._waits.pop(trial.member, None)  # it has stood the trial
            self._trial = None
        return worst

    def bring_back(self, now: float, forecasts_s: Mapping[str, float], deadline_s: float) -> str | None:
        """Let a shed member try again if that is due: one at a time, the last that went first.

        Args:
            now: as for `observe`.
            forecasts_s: when an answer with that member would be there, of those members that are wanted in this answer.
            deadline_s: of an answer.

        Returns:
            The member that takes part again from now on, if any.
        """
        if self._trial and now - self._trial.since < self.settings.window_s:
            return None
        for member, absent in reversed(self._absent.items()):
            calm_since = max(absent.since, self._last_miss)
            fits = forecasts_s.get(member, float("inf")) <= self.settings.head_room * deadline_s
            if now - calm_since >= absent.wait_s and fits:
                del self._absent[member]
                self._window = _Window()
                self._trial = _Trial(member, now)
                return member
        return None

    def forget(self, member: str) -> None:
        """A member is gone, or is another version: what is known of it counts no more."""
        self._absent.pop(member, None)
        self._waits.pop(member, None)
        if self._trial and self._trial.member == member:
            self._trial = None
        self._window = self._window.without(member)

    def _worst(self, costs: Mapping[str, float]) -> str | None:
        """Who has to go now, if anybody."""
        present = [member for member in costs if member not in self._absent]
        if len(present) < 2:
            return None
        trial = self._trial
        if trial and trial.member in present and self._failed(trial):
            return trial.member
        involved = [member for member in present if self._window.timed[member]]
        if len(involved) < 2 or not self._too_many_misses():  # who is asked alone is in nobody's way
            return None
        return max(involved, key=lambda member: costs[member])

    def _failed(self, trial: _Trial) -> bool:
        return trial.answers >= self.settings.trial_answers and trial.missed > self.settings.bound * trial.answers

    def _too_many_misses(self) -> bool:
        misses, answers = self._window.misses, len(self._window)
        if answers < self.settings.least_answers or not misses or misses[-1] - misses[0] < self.settings.persist_s:
            return False
        return len(misses) > self.settings.bound * answers

    def _leave_out(self, member: str, now: float) -> None:
        wait = self._waits.get(member, self.settings.wait_s)
        self._absent[member] = _Absent(now, wait)
        self._waits[member] = min(wait * self.settings.back_off, self.settings.longest_wait_s)
        self._window = _Window()  # the next one goes only on what happens without this one
        self._trial = None

    def _forget_old(self, now: float) -> None:
        self._window.drop_until(now - self.settings.window_s)

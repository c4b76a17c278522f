"""Which members to leave out while deadlines are missed, and when to try them again. Pure logic: time is passed in.

When too many answers miss, the member that costs most for what it is worth goes, never the last one. After a calm while it comes
back on trial; if the misses come back with it, it goes again, and the next wait is longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from longhaul.serving.detection.answers import Status


class SheddingSettings(BaseModel):
    """When to leave members out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    window_s: float = Field(10.0, gt=0)
    """How far back answers count; also how long a trial lasts."""
    least_answers: int = Field(8, ge=1)
    """Fewer answers than this prove nothing."""
    bound: float = Field(0.2, gt=0, lt=1)
    """Of the answers, this share may miss: one in which a member was late."""
    persist_s: float = Field(2.0, ge=0)
    """From the first of these misses to the last it is so long at least: one hiccup, however many it hits, is none."""
    trial_answers: int = Field(4, ge=1)
    """As `least_answers`, for a member on trial, and without `persist_s`: what was wrong before is believed sooner."""
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
class SheddingController:
    """Decides who is left out. Not thread-safe: one event loop uses it.

    Attributes:
        settings: when to act.
    """

    settings: SheddingSettings
    _answers: deque[tuple[float, Mapping[str, Status]]] = field(default_factory=deque)
    _absent: dict[str, _Absent] = field(default_factory=dict)
    _waits: dict[str, float] = field(default_factory=dict)
    _trial: tuple[str, float] | None = None
    _last_miss: float = float("-inf")

    @property
    def shed(self) -> frozenset[str]:
        """The members that are left out now."""
        return frozenset(self._absent)

    def misses(self, member: str, now: float) -> float:
        """Share of the window's answers with this member in which it was late, 0..1; 0 if there are none."""
        self._forget_old(now)
        asked = [statuses[member] for _, statuses in self._answers if statuses.get(member) not in (None, Status.SHED)]
        return sum(status is Status.LATE for status in asked) / len(asked) if asked else 0.0

    def observe(self, now: float, statuses: Mapping[str, Status], costs: Mapping[str, float]) -> str | None:
        """Take note of an answer, and shed a member if that is due.

        Args:
            now: seconds on any clock that only goes forward.
            statuses: of the answer, by member.
            costs: seconds of an engine for a unit of value, of all members.

        Returns:
            The member that is left out from now on, if any.
        """
        self._answers.append((now, dict(statuses)))
        self._forget_old(now)
        if Status.LATE in statuses.values():
            self._last_miss = now
        if not self.settings.enabled:
            return None
        on_trial = self._trial[0] if self._trial else None
        if self._too_many_misses():
            present = [member for member in costs if member not in self._absent]
            if len(present) > 1:
                worst = on_trial if on_trial in present else max(present, key=lambda member: costs[member])
                self._leave_out(str(worst), now)
                return worst
        elif self._trial and now - self._trial[1] >= self.settings.window_s:
            self._waits.pop(self._trial[0], None)  # it has stood the trial
            self._trial = None
        return None

    def bring_back(self, now: float, forecasts_s: Mapping[str, float], deadline_s: float) -> str | None:
        """Let a shed member try again if that is due: one at a time, the last that went first.

        Args:
            now: as for `observe`.
            forecasts_s: when an answer with that member would be there, by member.
            deadline_s: of an answer.

        Returns:
            The member that takes part again from now on, if any.
        """
        if self._trial and self._trial[0] not in self._absent and now - self._trial[1] < self.settings.window_s:
            return None
        for member, absent in reversed(self._absent.items()):
            calm_since = max(absent.since, self._last_miss)
            fits = forecasts_s.get(member, float("inf")) <= self.settings.head_room * deadline_s
            if now - calm_since >= absent.wait_s and fits:
                del self._absent[member]
                self._answers.clear()
                self._trial = member, now
                return member
        return None

    def forget(self, member: str) -> None:
        """A member is gone, or is another version: what is known of it counts no more."""
        self._absent.pop(member, None)
        self._waits.pop(member, None)
        if self._trial and self._trial[0] == member:
            self._trial = None
        self._answers = deque(
            (when, {name: status for name, status in statuses.items() if name != member}) for when, statuses in self._answers
        )

    def _too_many_misses(self) -> bool:
        needed, lasting = self.settings.least_answers, self.settings.persist_s
        if self._trial:
            needed, lasting = self.settings.trial_answers, 0.0
        missed = [when for when, statuses in self._answers if Status.LATE in statuses.values()]
        if len(self._answers) < needed or not missed or missed[-1] - missed[0] < lasting:
            return False
        return len(missed) / len(self._answers) > self.settings.bound

    def _leave_out(self, member: str, now: float) -> None:
        wait = self._waits.get(member, self.settings.wait_s)
        self._absent[member] = _Absent(now, wait)
        self._waits[member] = min(wait * self.settings.back_off, self.settings.longest_wait_s)
        self._answers.clear()  # the next one goes only on what happens without this one
        self._trial = None

    def _forget_old(self, now: float) -> None:
        while self._answers and self._answers[0][0] <= now - self.settings.window_s:
            self._answers.popleft()

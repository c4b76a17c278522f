"""The shedding controller: pure logic, with time passed in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from longhaul.serving.detection.answers import Status
from longhaul.serving.detection.shedding import SheddingController, SheddingSettings

SETTINGS = SheddingSettings(window_s=10, least_answers=8, bound=0.2, trial_answers=4, wait_s=15, longest_wait_s=100)
COSTS = {"cheap": 0.01, "dear": 0.1, "middling": 0.05}
DEADLINE_S = 0.4
FITS = dict.fromkeys(COSTS, 0.1)


class Traffic:
    """Answers at a steady rate through one controller."""

    def __init__(self, settings: SheddingSettings = SETTINGS, costs: dict[str, float] = COSTS, forecasts=FITS) -> None:
        self.controller = SheddingController(settings)
        self.now = 100.0
        self.costs, self.forecasts = dict(costs), dict(forecasts)
        self.log: list[tuple[float, str, str]] = []

    def go(self, seconds: float, late=lambda asked, number: (), rate: float = 5.0, wanted: tuple[str, ...] = ()) -> None:
        """Answers for so long; `late(asked, number)` says which of those asked miss; `wanted` are all if none is named."""
        for number in range(round(seconds * rate)):
            self.now += 1 / rate
            names = wanted or tuple(self.costs)
            forecasts = {name: self.forecasts[name] for name in self.controller.shed if name in names}
            if back := self.controller.bring_back(self.now, forecasts, DEADLINE_S):
                self.log.append((self.now, "back", back))
            asked = [name for name in names if name not in self.controller.shed]
            missed = late(asked, number)
            statuses = {name: Status.SHED for name in names if name not in asked}
            statuses |= {name: Status.LATE if name in missed else Status.ON_TIME for name in asked}
            if gone := self.controller.observe(self.now, statuses, self.costs):
                self.log.append((self.now, "shed", gone))

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(what, who) for _, what, who in self.log]


def all_miss(asked, number):
    return asked


def overload(asked, number):
    """All miss as long as the dear one is asked."""
    return asked if "dear" in asked else ()


def test_the_member_that_costs_most_for_its_value_goes_when_misses_persist() -> None:
    traffic = Traffic()
    traffic.go(3, overload)
    assert traffic.controller.shed == {"dear"}
    worth = Traffic(costs={**COSTS, "dear": 0.1 / 10})  # ten times the value
    worth.go(3, all_miss)
    assert worth.events[0] == ("shed", "middling")


def test_a_few_misses_and_rare_misses_change_nothing() -> None:
    traffic = Traffic()
    traffic.go(2, all_miss)  # ten answers, but one hiccup
    traffic.go(30)
    traffic.go(60, lambda asked, number: asked if number % 6 == 0 else ())  # 17 %
    assert traffic.events == []
    seldom = Traffic()
    seldom.go(60, all_miss, rate=0.5)  # five in a window
    assert seldom.events == []


def test_the_last_member_stays_however_much_it_misses() -> None:
    traffic = Traffic()
    traffic.go(100, all_miss)
    assert [who for what, who in traffic.events if what == "shed"][:2] == ["dear", "middling"]
    assert "cheap" not in [who for _, who in traffic.events]
    assert len(traffic.controller.shed) <= 2


def test_the_next_one_goes_only_on_what_happened_without_the_first() -> None:
    traffic = Traffic()
    traffic.go(10, all_miss)
    (first, _, _), (second, _, _) = traffic.log[:2]
    assert second - first >= (SETTINGS.least_answers - 1) / 5


def test_after_a_calm_while_it_comes_back_and_stays_if_it_does_well() -> None:
    traffic = Traffic()
    traffic.go(3, overload)
    shed_at = traffic.now
    traffic.go(60)
    assert traffic.events == [("shed", "dear"), ("back", "dear")]
    assert traffic.log[1][0] >= shed_at + SETTINGS.wait_s - 3
    assert not traffic.controller.shed


def test_misses_of_the_others_put_the_trial_off() -> None:
    traffic = Traffic()
    traffic.go(3, overload)
    traffic.go(60, lambda asked, number: asked[:1] if number % 20 == 0 else ())  # one each four seconds: never calm
    assert traffic.controller.shed == {"dear"}


def test_without_head_room_in_the_forecast_it_is_not_tried() -> None:
    traffic = Traffic(forecasts={**FITS, "dear": 0.9 * DEADLINE_S})
    traffic.go(3, overload)
    traffic.go(60)
    assert traffic.controller.shed == {"dear"}
    traffic.forecasts["dear"] = 0.7 * DEADLINE_S
    traffic.go(1)
    assert not traffic.controller.shed


def test_each_failed_trial_doubles_the_wait_up_to_a_bound_and_a_passed_one_resets_it() -> None:
    traffic = Traffic()
    traffic.go(600, overload)
    back = [when for when, what, _ in traffic.log if what == "back"]
    shed = [when for when, what, _ in traffic.log if what == "shed"]
    waits = [b - s for s, b in zip(shed, back, strict=False)]
    assert [round(wait) for wait in waits[:5]] == [15, 30, 60, 100, 100]
    trials = [s - b for b, s in zip(back, shed[1:], strict=False)]
    assert all(trial <= SETTINGS.trial_answers / 5 for trial in trials)  # believed sooner than the first time
    traffic.go(200)
    assert not traffic.controller.shed
    traffic.log.clear()
    traffic.go(30, overload)
    (gone, _, _), (again, _, _) = traffic.log[:2]
    assert round(again - gone) == 15


def test_a_trial_blames_the_one_on_trial_and_one_is_on_trial_at_a_time() -> None:
    traffic = Traffic()
    traffic.go(10, lambda asked, number: asked if len(asked) > 1 else ())
    assert traffic.events == [("shed", "dear"), ("shed", "middling")]
    traffic.go(14, lambda asked, number: asked if len(asked) > 2 else ())
    assert traffic.events[2:] == [("back", "middling")]  # the last that went comes first
    traffic.costs["middling"] = 0.001
    traffic.go(3, lambda asked, number: asked if len(asked) > 1 else ())
    assert traffic.events[3:] == [("shed", "middling")]  # though "cheap" costs more by now


def test_who_was_not_asked_is_not_shed_for_those_who_were() -> None:
    alone = Traffic()
    alone.go(60, all_miss, wanted=("cheap",))
    assert alone.events == []  # nobody else waits for it, and without it there would be no answer at all
    two = Traffic()
    two.go(60, all_miss, wanted=("cheap", "middling"))
    assert {who for _, who in two.events} == {"middling"}
    failing = SheddingController(SETTINGS)
    for number in range(100):
        statuses = {"cheap": Status.LATE, "dear": Status.FAILED}
        assert failing.observe(number / 5, statuses, COSTS) is None  # the only one that answers


def test_a_trial_is_stood_only_by_answers_of_the_one_on_trial() -> None:
    traffic = Traffic()
    traffic.go(3, overload)
    while traffic.controller.shed:
        traffic.go(0.2)
    traffic.log.clear()
    traffic.go(50, wanted=("cheap", "middling"))  # nobody asks it: that proves nothing
    traffic.go(3, overload)
    traffic.go(60)
    (gone, _, _), (again, _, _) = traffic.log
    assert round(again - gone) == 2 * SETTINGS.wait_s


def test_a_trial_that_nobody_asks_for_keeps_nobody_else_waiting() -> None:
    traffic = Traffic()
    traffic.go(10, lambda asked, number: asked if len(asked) > 1 else ())
    assert traffic.controller.shed == {"dear", "middling"}
    while len(traffic.events) < 3:
        traffic.go(0.2)
    assert traffic.events[2:] == [("back", "middling")]
    traffic.go(30, wanted=("cheap", "dear"))
    assert traffic.events[3:] == [("back", "dear")]


def test_another_version_of_a_member_starts_afresh() -> None:
    traffic = Traffic()
    traffic.go(3, overload)
    traffic.controller.forget("dear")
    assert not traffic.controller.shed
    assert traffic.controller.misses("dear", traffic.now) == 0


def test_the_share_of_misses_counts_only_answers_in_which_it_was_asked() -> None:
    controller = SheddingController(SheddingSettings(enabled=False))
    for number in range(4):
        status = Status.LATE if number == 0 else Status.ON_TIME
        controller.observe(float(number), {"a": status, "b": Status.SHED}, {"a": 1, "b": 1})
    assert controller.misses("a", 4.0) == 0.25
    assert controller.misses("b", 4.0) == 0
    assert controller.misses("a", 40.0) == 0
    assert controller.shed == frozenset()


answers = st.dictionaries(st.sampled_from(sorted(COSTS)), st.sampled_from(Status))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 9), answers), max_size=40), st.sampled_from([None, *COSTS]))
def test_the_running_counts_are_those_of_the_window(script, gone) -> None:
    controller, now = SheddingController(SETTINGS.model_copy(update={"enabled": False})), 0.0
    noted: list[tuple[float, dict[str, Status]]] = []
    for wait, statuses in script:
        now += wait
        controller.observe(now, statuses, COSTS)
        noted.append((now, statuses))
    if gone:
        controller.forget(gone)
    for member in COSTS:
        window = [all_[member] for when, all_ in noted if when > now - SETTINGS.window_s and member in all_ and member != gone]
        asked = [status for status in window if status is not Status.SHED]
        expected = asked.count(Status.LATE) / len(asked) if asked else 0.0
        assert controller.misses(member, now) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 30), st.sets(st.sampled_from(sorted(COSTS)))), max_size=150))
def test_whatever_happens_somebody_is_always_asked(script) -> None:
    controller, now = SheddingController(SETTINGS), 0.0
    for wait, late in script:
        now += wait
        controller.bring_back(now, FITS, DEADLINE_S)
        asked = set(COSTS) - controller.shed
        assert asked
        controller.observe(now, {n: Status.LATE if n in late else Status.ON_TIME for n in asked}, COSTS)

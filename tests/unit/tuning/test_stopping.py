"""Stopping early: each trial is judged once at each place, and a sweep that was killed judges as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from longhaul.errors import UserError
from longhaul.recipe.sweep import AshaStopping, MedianStopping, NoStopping, PbtStopping, StoppingSection
from longhaul.tuning.history import Direction, Past
from longhaul.tuning.search.search import make_searcher
from longhaul.tuning.search.stopping import make_scheduler

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE
ASHA = AshaStopping(kind="asha", least_epochs=1, reduction=3)
MEDIAN = MedianStopping(kind="median", least_epochs=1, least_trials=3)
Curve = Sequence[tuple[float, float]]


def trial(key: str) -> Any:
    """What a scheduler looks at in a trial of Ray Tune, with an id that is new each time."""
    return SimpleNamespace(config={"key": key}, trial_id=f"{key}-{np.random.default_rng().integers(1 << 60)}")


def tell(scheduler: TrialScheduler, one: Any, epoch: float, score: float) -> str:
    return str(scheduler.on_trial_result(None, one, {"epoch": epoch, "score": score, "training_iteration": 1}))


def past(key: str, scores: Curve, ended: Any = "finished") -> Past:
    return Past({"x": key}, scores, ended, key)


def asha(epochs: float = 9, before: Sequence[Past] = (), least: float = 1.0, direction: Direction = "max") -> TrialScheduler:
    return make_scheduler(AshaStopping(kind="asha", least_epochs=least, reduction=3), direction, epochs, before)


@pytest.mark.parametrize(("direction", "sign"), [("max", 1.0), ("min", -1.0)])
def test_at_a_rung_only_the_best_third_goes_on(direction: Direction, sign: float) -> None:
    scheduler = asha(before=[past(str(place), [(1.0, sign * place)]) for place in range(1, 7)], direction=direction)
    assert tell(scheduler, trial("good"), 1.0, sign * 5.5) == CONTINUE
    assert tell(scheduler, trial("bad"), 1.0, sign * 4.0) == STOP
    assert tell(scheduler, trial("young"), 0.5, sign * 0.0) == CONTINUE


@pytest.mark.parametrize(("direction", "sign"), [("max", 1.0), ("min", -1.0)])
def test_a_score_that_ties_with_the_cutoff_goes_on_whatever_the_rounding(direction: Direction, sign: float) -> None:
    """Right answers of 288 in single precision: half way between 278 and 282 lies 280, but not to the last bit."""
    scores = {right: float(np.float32(right / 288)) for right in (277, 278, 279, 280, 282)}
    assert (scores[278] + scores[282]) / 2 != scores[280]
    before = [past(str(right), [(1.0, sign * scores[right])]) for right in (277, 278, 282)]
    rule = AshaStopping(kind="asha", reduction=4)
    assert tell(make_scheduler(rule, direction, 9, before), trial("tie"), 1.0, sign * scores[280]) == CONTINUE
    assert tell(make_scheduler(rule, direction, 9, before), trial("below"), 1.0, sign * scores[279]) == STOP


def test_between_rungs_nobody_is_judged() -> None:
    scheduler = asha(before=[past(str(place), [(epoch, 9.0) for epoch in (1.0, 2.0, 3.0)]) for place in range(6)])
    one = trial("one")
    assert tell(scheduler, one, 1.0, 9.0) == CONTINUE
    assert tell(scheduler, one, 2.0, 0.0) == CONTINUE
    assert tell(scheduler, one, 3.0, 0.0) == STOP


def test_a_trial_that_validates_every_half_epoch_is_judged_once_at_each_rung() -> None:
    scheduler = asha(before=[past(str(place), [(half / 2, 9.0) for half in range(1, 18)]) for place in range(6)])
    one = trial("one")
    verdicts = [tell(scheduler, one, half / 2, 9.0 if half in (2, 6) else 0.0) for half in range(1, 18)]
    assert verdicts == [CONTINUE] * 17  # 2 and 6 are epochs 1 and 3, the rungs below the last epoch


def test_a_rung_that_a_trial_jumps_over_is_not_made_up_for_later() -> None:
    """Validations every 4 epochs: rung 3 is met at epoch 4, and rung 1 never."""
    before = [past(str(place), [(4.0, 5.0), (8.0, 9.0)]) for place in range(6)]
    scheduler = asha(27, before)
    one = trial("one")
    assert tell(scheduler, one, 4.0, 6.0) == CONTINUE
    assert tell(scheduler, one, 8.0, 1.0) == CONTINUE
    assert tell(scheduler, one, 12.0, 0.0) == CONTINUE  # nobody else has come to rung 9


def test_rungs_at_fractions_are_met_whatever_the_rounding() -> None:
    before = [past(str(place), [(0.1, 9.0), (0.3, 9.0)]) for place in range(6)]
    for epoch in (0.3, 0.1 * 3, 0.3 - 1e-9):  # the rung lies at 0.30000000000000004
        scheduler = asha(9, before, least=0.1)
        one = trial("one")
        assert tell(scheduler, one, 0.1, 9.0) == CONTINUE
        assert tell(scheduler, one, epoch, 0.0) == STOP


@pytest.mark.parametrize("stopping", [ASHA, MEDIAN])
def test_trials_are_at_the_same_epoch_whatever_the_rounding(stopping: StoppingSection) -> None:
    for epoch, others in ((3.3000000000000003, 3.3), (3.3, 3.3000000000000003)):  # 1.1 * 3
        before = [past(str(place), [(others, 9.0)]) for place in range(6)]
        one = trial("one")
        scheduler = make_scheduler(stopping, "max", 9, [*before, past("one", [(others, 9.0)], "running")])
        assert tell(scheduler, one, epoch, 0.0) == CONTINUE  # told before
        assert tell(make_scheduler(stopping, "max", 9, before), one, epoch, 0.0) == STOP


@pytest.mark.parametrize("stopping", [ASHA, MEDIAN])
def test_nobody_is_stopped_at_the_last_epoch(stopping: StoppingSection) -> None:
    before = [past(str(place), [(epoch, 9.0) for epoch in (1.0, 3.0, 9.0)]) for place in range(6)]
    for score in (0.0, math.nan):
        assert tell(make_scheduler(stopping, "max", 9, before), trial("late"), 9.0, score) == CONTINUE
        assert tell(make_scheduler(stopping, "max", 10, before), trial("late"), 9.0, score) == STOP


@pytest.mark.parametrize("stopping", [ASHA, MEDIAN])
def test_a_forced_trial_is_never_stopped_and_the_others_are_measured_against_it(stopping: StoppingSection) -> None:
    before = [past(str(place), [(1.0, 5.0), (2.0, 5.0), (3.0, 5.0)]) for place in range(4)]
    scheduler = make_scheduler(stopping, "max", 9, before, forced=["wanted"])
    wanted = trial("wanted")
    assert [tell(scheduler, wanted, epoch, 0.0) for epoch in (1.0, 2.0, 3.0)] == [CONTINUE] * 3
    assert tell(scheduler, trial("other"), 1.0, 0.0) == STOP


@pytest.mark.parametrize("stopping", [ASHA, MEDIAN])
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_the_worst_and_moves_no_bar(stopping: StoppingSection, score: float) -> None:
    lonely = make_scheduler(stopping, "max", 9, [])
    assert tell(lonely, trial("first"), 1.0, score) == CONTINUE
    assert tell(lonely, trial("second"), 1.0, 0.0) == CONTINUE
    assert tell(lonely, trial("second"), 2.0, score) == CONTINUE
    before = [past(str(place), [(1.0, 5.0)]) for place in range(4)]
    scheduler = make_scheduler(stopping, "max", 9, before)
    assert tell(scheduler, trial("young"), 0.5, score) == CONTINUE
    for place in range(5):
        assert tell(scheduler, trial(f"diverged{place}"), 1.0, score) == STOP
    assert tell(scheduler, trial("fair"), 1.0, 5.0) == CONTINUE
    assert tell(scheduler, trial("bad"), 1.0, 4.9) == STOP


@pytest.mark.parametrize("stopping", [ASHA, MEDIAN])
def test_a_trial_that_replays_after_a_restart_is_not_judged_by_what_others_did_since(stopping: StoppingSection) -> None:
    before = [past(str(place), [(1.0, 9.0), (2.0, 9.0), (3.0, 9.0)]) for place in range(6)]
    before.append(past("mine", [(1.0, 0.1), (2.0, 0.1)], "running"))  # it was the first, and passed
    scheduler = make_scheduler(stopping, "max", 9, before)
    mine = trial("mine")
    scheduler.on_trial_add(None, mine)
    assert [tell(scheduler, mine, epoch, 0.1) for epoch in (1.0, 2.0)] == [CONTINUE] * 2
    assert tell(scheduler, mine, 3.0, 0.1) == STOP
    assert tell(make_scheduler(stopping, "max", 9, before), trial("new"), 1.0, 0.1) == STOP


@pytest.mark.parametrize("stopping", [ASHA, MEDIAN])
def test_the_same_result_told_again_at_the_end_changes_nothing(stopping: StoppingSection) -> None:
    """Ray Tune tells a trial's last result when it comes, when its function returns, and when it has ended."""
    verdicts = []
    for again in (False, True):
        scheduler = make_scheduler(stopping, "max", 9, [])
        for place in range(6):
            one = trial(str(place))
            scheduler.on_trial_add(None, one)
            tell(scheduler, one, 1.0, 0.0)
            tell(scheduler, one, 3.0, float(place))
            if again:
                tell(scheduler, one, 3.0, float(place))
                scheduler.on_trial_complete(None, one, {"epoch": 3.0, "score": float(place)})
        verdicts.append([tell(scheduler, trial(f"n{score}"), 3.0, score) for score in np.linspace(0, 6, 61)])
    assert verdicts[0] == verdicts[1]
    assert {STOP, CONTINUE} == set(verdicts[0])


def test_median_stops_what_stays_below_the_others_means_once_enough_have_come_that_far() -> None:
    scheduler = make_scheduler(MEDIAN, "max", 9, [past("a", [(1.0, 1.0), (2.0, 3.0)]), past("b", [(1.0, 2.0), (2.0, 4.0)])])
    assert tell(scheduler, trial("early"), 2.0, 0.0) == CONTINUE  # two others only
    scheduler = make_scheduler(
        MEDIAN, "max", 9, [past(key, [(1.0, low), (2.0, low + 2)]) for key, low in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    )
    assert tell(scheduler, trial("below"), 2.0, 2.9) == STOP  # means 2, 3, 4
    assert tell(scheduler, trial("above"), 2.0, 3.1) == CONTINUE


def test_a_trial_that_stands_still_while_others_wait_is_not_paused() -> None:
    """Ray's median rule would pause it, which starts a function trainable all over again."""
    waiting = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    scheduler = make_scheduler(MEDIAN, "max", 9, [])
    result = {"epoch": 1.0, "score": 0.0}
    assert scheduler.on_trial_result(waiting, trial("alone"), result) == CONTINUE  # type: ignore[arg-type]


def test_a_first_comparison_beyond_the_end_is_a_mistake() -> None:
    for stopping in (ASHA.model_copy(update={"least_epochs": 5.0}), MEDIAN.model_copy(update={"least_epochs": 5.0})):
        with pytest.raises(UserError, match=r"least_epochs 5: trials train for 4 epochs"):
            make_scheduler(stopping, "max", 4, [])
    assert isinstance(make_scheduler(NoStopping(), "max", 4, []), FIFOScheduler)
    with pytest.raises(ValueError, match="population"):
        make_scheduler(PbtStopping(kind="pbt"), "max", 4, [])


@dataclass
class Sweep:
    """A sweep of `curves` on `workers` workers: validations come in an order that `seed` decides."""

    stopping: StoppingSection
    curves: list[list[float]]
    workers: int
    seed: int
    done: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)

    def history(self) -> list[Past]:
        return [past(str(number), scores, self.ended.get(number, "running")) for number, scores in self.done.items()]

    def run(self, kill_at: int | None = None, replay: int = 0) -> Sweep:
        """All trials to their ends; killed after so many validations, each goes on from `replay` validations before."""
        epochs = len(self.curves[0]) / 2
        scheduler = make_scheduler(self.stopping, "max", epochs, [])
        rng = np.random.default_rng(self.seed)
        handles = {number: trial(str(number)) for number in range(len(self.curves))}
        told = 0
        while len(self.ended) < len(self.curves):
            if told == kill_at:
                scheduler = make_scheduler(self.stopping, "max", epochs, self.history())
                handles = {number: trial(str(number)) for number in handles}
                for number in self.running:
                    scheduler.on_trial_add(None, handles[number])
                    for epoch, score in self.done.get(number, [])[-replay:] if replay else ():
                        assert tell(scheduler, handles[number], epoch, score) == CONTINUE
            number = int(rng.choice(self.running))
            scores = self.done.setdefault(number, [])
            scores.append(((len(scores) + 1) / 2, self.curves[number][len(scores)]))
            told += 1
            if tell(scheduler, handles[number], *scores[-1]) == STOP:
                self.ended[number] = "stopped"
            elif len(scores) == len(self.curves[number]):
                self.ended[number] = "finished"
        return self

    @property
    def running(self) -> list[int]:
        left = [number for number in range(len(self.curves)) if number not in self.ended]
        return left[: self.workers]


def learning_curves(count: int, epochs: int, seed: int) -> list[list[float]]:
    """Accuracies every half epoch that rise to different heights at different speeds, with noise."""
    rng = np.random.default_rng(seed)
    times = np.arange(1, 2 * epochs + 1) / 2
    heights, speeds = rng.uniform(0.3, 0.95, count), rng.uniform(0.2, 1.0, count)
    curves = heights[:, None] * (1 - np.exp(-speeds[:, None] * times)) + rng.normal(0, 0.01, (count, len(times)))
    return [list(map(float, curve)) for curve in curves]


@settings(max_examples=60, deadline=None)
@given(
    stopping=st.sampled_from([ASHA, MEDIAN]),
    seed=st.integers(0, 999),
    workers=st.integers(1, 5),
    kill_at=st.integers(0, 80),
    replay=st.integers(0, 6),
    diverging=st.sets(st.integers(0, 11), max_size=3),
)
def test_a_sweep_that_was_killed_decides_as_one_that_was_not(
    stopping: StoppingSection, seed: int, workers: int, kill_at: int, replay: int, diverging: set[int]
) -> None:
    curves = learning_curves(12, 9, seed)
    for number in diverging:
        curves[number][seed % 18 :] = [math.nan] * (18 - seed % 18)
    straight = Sweep(stopping, curves, workers, seed).run()
    killed = Sweep(stopping, curves, workers, seed).run(kill_at, replay)
    assert killed.ended == straight.ended
    assert repr(killed.done) == repr(straight.done)


@pytest.mark.parametrize("stopping", [ASHA, MEDIAN])
def test_the_best_curve_is_almost_found_for_less_training(stopping: StoppingSection) -> None:
    lost, share = [], []
    for seed in range(10):
        curves = learning_curves(30, 9, seed)
        sweep = Sweep(stopping, curves, 4, seed).run()
        finals = [curves[number][-1] for number, end in sweep.ended.items() if end == "finished"]
        lost.append(max(curve[-1] for curve in curves) - max(finals))
        share.append(sum(map(len, sweep.done.values())) / sum(map(len, curves)))
    assert np.median(lost) < 0.03
    assert np.mean(share) < 0.7


def train_curve(config: dict[str, Any]) -> None:
    """A trainable that tells a learning curve, goes on where it was, and leaves a mark when it has come to its end."""
    from ray import tune

    for half in range(1, 9):
        tune.report({"epoch": half / 2, "score": config["height"] * (1 - 2 ** (-half / 2))})
    Path(config["marks"], config["key"]).touch()


def test_ray_tune_stops_by_the_rule_and_lets_the_rest_come_to_their_ends(ray_cluster: str, tmp_path: Path) -> None:
    from ray import tune

    from longhaul.recipe.sweep import SearchSection

    marks = tmp_path / "marks"
    marks.mkdir()
    search = SearchSection.model_validate(
        {"kind": "tpe", "trials": 4, "space": {"height": {"choice": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}}}
    )
    before = [Past({"height": 0.7}, [(half / 2, 0.7 * (1 - 2 ** (-half / 2))) for half in range(1, 4)], "stopped", "old")]
    searcher = make_searcher(search, "max", before)
    inner = searcher.suggest

    def with_key(trial_id: str) -> Any:
        point = inner(trial_id)
        return point if isinstance(point, str) else {**point, "key": trial_id, "marks": str(marks)}

    searcher.suggest = with_key  # type: ignore[method-assign]
    scheduler = make_scheduler(AshaStopping(kind="asha", least_epochs=1, reduction=2), "max", 4, before)
    results = tune.Tuner(
        tune.with_resources(train_curve, {"CPU": 1}),
        tune_config=tune.TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=-1, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="curves", verbose=0),
    ).fit()
    assert not results.errors
    assert len(results) == 3  # of four trials, one was there before
    new = searcher.trials[1:]
    assert [(trial.coordinates["height"], trial.reached) for trial in new] == [(0.3, 1.0), (0.2, 1.0), (0.5, 4.0)]
    assert [path.name for path in marks.iterdir()] == [new[2].key]  # it was not cut off after its last report
    assert {result.metrics["epoch"] for result in results} == {1.0, 4.0}  # type: ignore[attr-defined]

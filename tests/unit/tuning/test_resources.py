"""What a trial takes of the cluster, how many train at once, and where the budget ends it."""

from __future__ import annotations

import pytest

from longhaul.errors import UserError
from longhaul.recipe import Recipe, parse
from longhaul.recipe.sweep import BudgetSection, ResourcesSection
from longhaul.resilience.sweep_directory import CellRecord, Standing, SweepState
from longhaul.tuning.budget import Budget, dollars
from longhaul.tuning.sizing.resources import DRIVER, gpu_share, parallel_trials, trial_resources

AUTO = ResourcesSection(gpu_memory_gb=16)
CPUS, GPUS = {"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}


def _recipe(scaling: str = "{}") -> Recipe:
    text = f"""
name: cell
model: {{name: resnet18}}
data: {{kind: digits}}
training: {{epochs: 1, global_batch: 64}}
scaling: {scaling}
"""
    return parse(text, source="test")


def test_a_cell_takes_a_quarter_a_half_or_a_whole_gpu_by_its_memory_with_headroom() -> None:
    needs = {3.6: 0.25, 3.7: 0.5, 7.2: 0.5, 7.3: 1.0, 100.0: 1.0, None: 1.0}
    assert {need: gpu_share(_recipe(), AUTO, need) for need in needs} == needs
    assert gpu_share(_recipe("{gpu: false}"), AUTO, 1.0) == 0
    assert gpu_share(_recipe(), ResourcesSection(gpus=0.1), 100.0) == 0.1
    assert gpu_share(_recipe("{workers: 2}"), AUTO, 1.0) == 2


def test_a_trial_takes_a_gpu_where_there_is_one_and_cores_in_any_case() -> None:
    assert trial_resources(_recipe(), AUTO, 0.25, GPUS) == {"CPU": 1.0, "GPU": 0.25}
    assert trial_resources(_recipe(), AUTO, 0.25, CPUS) == {"CPU": 1.0}
    assert trial_resources(_recipe("{gpu: false}"), AUTO, 0.25, GPUS) == {"CPU": 1.0}
    assert trial_resources(_recipe(), ResourcesSection(cpus=0.5, gpus=0), 0.0, GPUS) == {"CPU": 0.5}


def test_a_cell_of_several_workers_leaves_every_core_to_them() -> None:
    assert trial_resources(_recipe("{workers: 2}"), AUTO, 2.0, CPUS) == DRIVER
    assert "CPU" not in DRIVER
    assert parallel_trials(_recipe("{workers: 2}"), AUTO, {"CPU": 2.0}) == 1


@pytest.mark.parametrize("asked", [ResourcesSection(cpus=5), ResourcesSection(gpus=1.0)])
def test_what_the_cluster_never_has_is_refused(asked: ResourcesSection) -> None:
    gpus = 0.0 if asked.gpus == "auto" else asked.gpus
    with pytest.raises(UserError, match=r"a cell takes . .PU, and the cluster has"):
        trial_resources(_recipe(), asked, gpus, CPUS)
    with pytest.raises(UserError, match="a cell takes 8 CPU, and the cluster has 4"):
        parallel_trials(_recipe("{workers: 8, gpu: false}"), AUTO, CPUS)


def test_as_many_train_at_once_as_never_wait_for_each_other() -> None:
    assert parallel_trials(_recipe(), AUTO, CPUS) == 4
    assert parallel_trials(_recipe(), ResourcesSection(cpus=1.5), CPUS) == 2
    assert parallel_trials(_recipe(), AUTO, GPUS) == 8  # quarters of two GPUs
    assert parallel_trials(_recipe("{gpu: false}"), AUTO, GPUS) == 16
    assert parallel_trials(_recipe(), ResourcesSection(parallel=3), GPUS) == 3
    assert parallel_trials(_recipe(), ResourcesSection(cpus=0.1), {"CPU": 0.3}) == 3
    assert parallel_trials(_recipe("{workers: 2}"), AUTO, CPUS) == 2
    assert parallel_trials(_recipe("{workers: 2}"), AUTO, GPUS) == 1
    assert parallel_trials(_recipe("{workers: [1, 4], gpu: false}"), AUTO, CPUS) == 4
    assert parallel_trials(_recipe("{workers: 2, cpus_per_worker: 2}"), ResourcesSection(parallel=9), CPUS) == 1


def _state(*standings: Standing, hours: float = 0.0, dollars: float = 0.0) -> SweepState:
    begun = ("running", "finished", "stopped", "failed")
    cells = [
        CellRecord(key=str(i), coordinates={}, recipe="", standing=standing, begun=standing in begun)
        for i, standing in enumerate(standings)
    ]
    return SweepState(name="s", goal="val/top1", direction="max", cells=cells, hours=hours, dollars=dollars)


def test_hours_and_dollars_end_the_sweep_with_a_reason_that_names_both_numbers() -> None:
    budget = Budget(BudgetSection(hours=2, dollars=5, dollars_per_gpu_hour=1))
    assert budget.over(_state("running", hours=1.9, dollars=4.9)) is None
    assert budget.over(_state("running", hours=2.01)) == "budget.hours 2: 2.01 hours have been spent"
    assert budget.over(_state("running", dollars=5.5)) == "budget.dollars 5: 5.50 dollars have been spent"


def test_the_trials_that_the_budget_has_room_for_train_to_their_end_and_no_more_begin() -> None:
    budget = Budget(BudgetSection(trials=3))
    state = _state("finished", "skipped", "stopped", "running", "planned")
    assert budget.over(state) is None
    assert not budget.allows(state, state.cells[4])
    assert budget.allows(state, state.cells[3])
    state.cells[3].standing = "finished"
    assert budget.over(state) == "budget.trials 3: 3 cells have been trained"


def test_a_cell_that_was_paused_goes_on_without_costing_another_trial() -> None:
    budget = Budget(BudgetSection(trials=1))
    state = _state("planned", "planned")
    state.cells[0].begun = True
    assert budget.over(state) is None
    assert [budget.allows(state, cell) for cell in state.cells] == [True, False]
    assert Budget(BudgetSection()).allows(state, state.cells[1])


def test_a_cell_s_time_costs_what_its_share_costs() -> None:
    section = BudgetSection(dollars_per_gpu_hour=2.0, dollars_per_cpu_hour=0.1)
    assert dollars(section, 1800, cpus=2, gpus=0.5) == pytest.approx(0.6)

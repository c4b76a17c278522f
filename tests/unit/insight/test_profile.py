"""Profiles: the rule of the warm-up and the percentiles on a clock of our own, the conditions, and the file of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from longhaul.errors import IntegrityError, LonghaulError, UserError
from longhaul.insight.peak_memory import cpu_peak_mb
from longhaul.insight.profile import FILE, Conditions, Profile, load_profile, profile, profile_run, save_profile, tf32_operations
from longhaul.insight.timing import Timing, measure
from longhaul.models.counting import MIB, count
from longhaul.models.zoo import build_image_model
from longhaul.recipe import parse
from longhaul.recipe.networks import ModelSection
from longhaul.resilience.run_directory import RunDirectory


class ScriptedWatch:
    """Each call takes the next of the given seconds; time passes in calls alone."""

    def __init__(self, times: Iterator[float], *, queues: bool = False, row_s: float = 0.0) -> None:
        self._times, self._row_s = times, row_s
        self.queues = queues
        self.at, self.rows = 0.0, list[int]()

    def now(self) -> float:
        return self.at

    def one(self, call: Callable[[], object]) -> float:
        call()
        took = next(self._times)
        self.at += took
        return took

    def row(self, call: Callable[[], object], times: int) -> float:
        self.rows.append(times)
        return self._row_s * times


def timed(*times: float, then: float, budget_s: float, batch: int = 1) -> Timing:
    watch = ScriptedWatch(itertools.chain(times, itertools.repeat(then)))
    return measure(lambda: None, batch, watch=watch, budget_s=budget_s)


def test_the_warm_up_ends_when_two_windows_of_five_agree_and_counts_for_nothing() -> None:
    falling = [s for level in (1.0, 0.5, 0.2, 0.11) for s in [level] * 5]
    timing = timed(*falling, then=0.1, budget_s=90)
    assert timing.settled
    assert timing.warm_up == 30  # 0.11 to 0.1 is more than 5 %, 0.1 to 0.1 is not
    assert timing.p50_ms == timing.p99_ms == pytest.approx(100)


def test_one_slow_call_does_not_keep_the_warm_up_going() -> None:
    assert timed(9.0, *[0.1] * 6, 5.0, then=0.1, budget_s=90).warm_up == 10


def test_times_that_never_settle_are_timed_after_a_third_of_the_budget_and_said_so() -> None:
    restless = itertools.cycle([1.0] * 5 + [2.0] * 5)
    timing = measure(lambda: None, 1, watch=ScriptedWatch(restless), budget_s=90)
    assert not timing.settled
    assert timing.warm_up == 20  # four windows, 30 s
    assert timing.calls == 40  # 60 s


def test_a_dear_call_is_warmed_up_once_and_timed_three_times() -> None:
    timing = timed(50.0, 10.0, 20.0, then=40.0, budget_s=3)
    assert (timing.warm_up, timing.calls, timing.settled) == (1, 3, False)
    assert timing.p50_ms == 20_000


def test_there_is_no_p99_of_fewer_than_a_hundred_calls() -> None:
    assert timed(then=1.0, budget_s=10 + 99).p99_ms is None
    assert timed(then=1.0, budget_s=10 + 100).p99_ms == 1000


def test_percentiles_are_of_all_timed_calls() -> None:
    counting_up = [1.0] * 10 + [0.001 * n for n in range(1, 1001)]
    timing = timed(*counting_up, then=7.0, budget_s=10_000)
    assert timing.calls == 1000
    assert timing.p50_ms == pytest.approx(500.5)
    assert timing.p99_ms == pytest.approx(990.01)


def test_throughput_is_of_the_calls_in_turn_or_of_a_row_where_calls_queue() -> None:
    assert timed(*[1.0] * 10, 4.0, 6.0, 10.0, then=9.0, budget_s=30, batch=4).samples_per_s == 4 * 3 / 20
    queueing = ScriptedWatch(itertools.repeat(1.0), queues=True, row_s=0.25)
    assert measure(lambda: None, 4, watch=queueing, budget_s=30).samples_per_s == 16
    assert queueing.rows == [10]  # half of the twenty


class Witness(nn.Module):
    """Notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        if image.device.type == "cpu":
            layout = image.is_contiguous(memory_format=torch.channels_last)
            autocast = torch.is_autocast_enabled("cpu")
            quiet = torch.is_inference_mode_enabled() and not self.training
            NOTES.append((len(image), image.dtype, self.convolution.weight.dtype, autocast, layout, quiet))
        return self.convolution(image)


NOTES: list[tuple[int, torch.dtype, torch.dtype, bool, bool, bool]] = []


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (Conditions("cpu", 6, "fp32", budget_s=0.01), (torch.float32, torch.float32, False, False, True)),
        (Conditions("cpu", 6, "bf16", budget_s=0.01), (torch.float32, torch.float32, True, False, True)),
        (Conditions("cpu", 6, "fp16", budget_s=0.01), (torch.float16, torch.float16, False, False, True)),
        (Conditions("cpu", 6, "fp32", True, budget_s=0.01), (torch.float32, torch.float32, False, True, True)),
    ],
)
def test_the_network_runs_under_the_conditions_and_stays_as_it_is(conditions: Conditions, expected: tuple[object, ...]) -> None:
    NOTES.clear()
    model = Witness().train()
    found = profile(model, (3, 12, 20), conditions)
    assert {note[0] for note in NOTES} == {1, 6}
    assert {note[1:] for note in NOTES} == {expected}
    assert model.training
    assert model.convolution.weight.dtype == torch.float32
    assert (found.precision, found.channels_last, found.tf32) == (conditions.precision, conditions.channels_last, False)
    assert (found.single.batch, found.batched.batch) == (1, 6)
    assert (found.torch, found.threads) == (torch.__version__, torch.get_num_threads())
    assert found.count == count(model, (3, 12, 20))
    assert found.peak_memory_mb is None
    assert found.no_peak_memory


def test_a_device_that_is_not_here_and_a_shape_that_does_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="device cuda:97: not on this machine"):
        profile(nn.Conv2d(3, 4, 3), (3, 8, 8), Conditions("cuda:97"))
    with pytest.raises(UserError, match="device 'gpu': is none"):
        profile(nn.Conv2d(3, 4, 3), (3, 8, 8), Conditions("gpu"))
    with pytest.raises(UserError, match="cannot be counted at 5 x 8 x 8"):
        profile(nn.Conv2d(3, 4, 3), (5, 8, 8), Conditions("cpu"))


def test_what_fails_only_with_data_is_refused_in_one_line() -> None:
    class Picky(nn.Conv2d):
        def forward(self, image: Tensor) -> Tensor:
            if image.device.type == "cpu" and len(image) > 1:
                raise RuntimeError("no kernel for this\nat a long way down")
            return super().forward(image)

    with pytest.raises(UserError) as caught:
        profile(Picky(3, 4, 3), (3, 8, 8), Conditions("cpu", 2, budget_s=0.01))
    assert caught.value.problem == "a network cannot be profiled with batch 2 of 3 x 8 x 8 in fp32 on cpu (no kernel for this)"


RECIPE = "{name: cell, model: {name: test_resnet}, data: {kind: digits, resolution: 40}, training: {steps: 9}}"


def run_of(tmp_path: Path, text: str = RECIPE) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "cell", parse(text))


def test_a_run_is_profiled_by_its_recipe_and_its_profile_is_read_back(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert load_profile(run) is None
    found = profile_run(run, Conditions("cpu", 2, budget_s=0.01))
    assert found.shape == (3, 40, 40)
    assert found.count == count(build_image_model(ModelSection(name="test_resnet"), 10, 40), (3, 40, 40))
    save_profile(run, found)
    assert load_profile(RunDirectory.open(run.uri)) == found


def test_a_run_in_phases_is_profiled_at_the_last_ones_resolution(tmp_path: Path) -> None:
    phases = "phases: [{name: small, set: {data.resolution: 32}}, {name: large, set: {data.resolution: 48}}]"
    run = run_of(tmp_path, RECIPE.replace("training:", f"{phases}, training:"))
    assert profile_run(run, Conditions("cpu", 2, budget_s=0.01)).shape == (3, 48, 48)


@pytest.fixture
def _torch_settings() -> Iterator[None]:
    operations = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [operation.fp32_precision for operation in operations]
    yield
    for operation, precision in zip(operations, before, strict=True):
        operation.fp32_precision = precision


@pytest.mark.usefixtures("_torch_settings")
def test_which_operations_run_in_tf32_is_told_apart() -> None:
    for products, convolutions, told in (
        ("ieee", "ieee", ()),
        ("ieee", "tf32", ("cudnn.conv",)),
        ("tf32", "ieee", ("matmul",)),
        ("tf32", "tf32", ("matmul", "cudnn.conv")),
    ):
        torch.backends.cuda.matmul.fp32_precision = products
        torch.backends.cudnn.conv.fp32_precision = convolutions  # type: ignore[attr-defined]
        assert tf32_operations() == told


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: data.replace(b'"threads"', b'"thread"')])
def test_a_damaged_profile_is_said_to_be_one(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    run = run_of(tmp_path)
    save_profile(run, made_up())
    run.storage.write_bytes(FILE, change(run.storage.read_bytes(FILE)))
    with pytest.raises(IntegrityError, match=r"cell/profile\.json: .*; delete it and profile the run again"):
        load_profile(run)


def test_a_run_of_detection_has_no_profile(tmp_path: Path) -> None:
    text = (
        "{name: d, workload: {kind: detection}, model: {name: fasterrcnn_resnet18_fpn}, training: {steps: 9},"
        " data: {kind: spectrograms, root: /nowhere, classes: [a]}, export: {batches: [1]}}"
    )
    with pytest.raises(UserError, match="profiles are of classifiers, and it trains detection"):
        profile_run(run_of(tmp_path, text))


def made_up() -> Profile:
    timing = Timing(batch=1, calls=3, warm_up=1, settled=True, p50_ms=2.0, p99_ms=None, samples_per_s=500.0)
    return Profile(
        shape=(3, 8, 8),
        device="a CPU",
        torch="2",
        threads=1,
        measured_s=1.0,
        precision="fp32",
        tf32=False,
        channels_last=False,
        single=timing,
        batched=timing,
        peak_memory_mb=None,
        no_peak_memory="not asked for",
        count=count(nn.Conv2d(3, 4, 3), (3, 8, 8)),
    )


def test_peak_memory_on_a_cpu_holds_weights_and_the_widest_place() -> None:
    """ResNet-18 at 64 px, batch 192: its first convolution and norm hold (192, 64, 32, 32) twice, beside the images."""
    weights, images, widest = 42.7, 192 * 3 * 64 * 64 * 4 / MIB, 192 * 64 * 32 * 32 * 4 / MIB
    peak = cpu_peak_mb(ModelSection(name="resnet18"), 10, 64, Conditions("cpu", 192))
    assert weights + images + 2 * widest - 10 < peak < 2 * (weights + images + 2 * widest)


@pytest.mark.slow  # a process that imports torch, beside the one above
def test_a_process_that_cannot_measure_says_why() -> None:
    with pytest.raises(LonghaulError, match=r"failed \(.*resolution 16: model 'vgg16' cannot work at it"):
        cpu_peak_mb(ModelSection(name="vgg16"), 10, 16, Conditions("cpu", 1))


@pytest.mark.slow  # and of times, so that its bound is generous
def test_the_median_is_that_of_torch_s_own_timer() -> None:
    from torch.utils.benchmark import Timer

    model = build_image_model(ModelSection(name="resnet18"), 10, 96).eval()
    ours = profile(model, (3, 96, 96), Conditions("cpu", 4, budget_s=3)).batched.p50_ms
    images = torch.randn(4, 3, 96, 96)
    timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=torch.get_num_threads())
    with torch.inference_mode():
        theirs = 1e3 * timer.blocked_autorange(min_run_time=2).median
    assert 0.5 < ours / theirs < 2

"""From the order to batches: ids and pixels are the same however ranks, micro-batches and loader processes are chosen."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longhaul.data.images import ImageSamples, image_splits
from longhaul.data.loader import BatchPlan, StepBatch, batches, training_steps
from longhaul.data.order import SampleOrder
from longhaul.data.preprocess import ImagePreprocess
from longhaul.errors import UserError

GLOBAL_BATCH = 16
STEPS = 4  # of 16 over 40 samples: the second epoch is begun in mid-step


@pytest.fixture(scope="module")
def samples(few_digits: Path) -> ImageSamples:
    preprocess = ImagePreprocess(resolution=8)
    return image_splits(few_digits, preprocess, augment="flip", validation_share=0, test_share=0, seed=0).train


def read(samples: ImageSamples, *, world: int, micro: int, workers: int, cursor: int = 0) -> tuple[list[int], Tensor, list[int]]:
    """All ranks' samples in global order: (ids, pixels (N, 3, R, R), cursors behind the steps of rank 0)."""
    order = SampleOrder(len(samples), samples.fingerprint, 7, excluded=frozenset({5}))
    ids, pixels, cursors = [], [], []
    for rank in range(world):
        plan = BatchPlan.derive(GLOBAL_BATCH, micro, rank, world)
        with contextlib.closing(training_steps(samples, order, plan, cursor, workers=workers)) as stream:
            steps: list[StepBatch] = list(islice(stream, STEPS))
        assert all(len(batch["index"]) == micro for step in steps for batch in step.micro_batches)
        ids.append(torch.cat([batch["index"] for step in steps for batch in step.micro_batches]))
        pixels.append(torch.cat([batch["image"] for step in steps for batch in step.micro_batches]))
        cursors.append([step.cursor for step in steps])
    assert all(one == cursors[0] for one in cursors)
    return torch.stack(ids, 1).flatten().tolist(), torch.stack(pixels, 1).flatten(0, 1), cursors[0]


def sha256(ids: list[int]) -> str:
    return hashlib.sha256(repr(ids).encode()).hexdigest()


@pytest.fixture(scope="module")
def reference(samples: ImageSamples) -> tuple[list[int], Tensor, list[int]]:
    """One worker with micro-batch 8 that reads in its own process."""
    return read(samples, world=1, micro=8, workers=0)


def test_the_stream_is_the_order(samples: ImageSamples, reference: tuple[list[int], Tensor, list[int]]) -> None:
    ids, pixels, cursors = reference
    order = SampleOrder(len(samples), samples.fingerprint, 7, excluded=frozenset({5}))
    stretch = order.take(0, STEPS * GLOBAL_BATCH)
    assert ids == stretch.indices.tolist()
    assert cursors[-1] == stretch.cursor
    for at in (0, 17, 63):
        index, position = int(stretch.indices[at]), int(stretch.positions[at])
        torch.testing.assert_close(pixels[at], samples.read(index, order.sample_seed(position))["image"], rtol=0, atol=0)
    first, again = next((ids.index(i), at) for at, i in enumerate(ids) if i in ids[:at])  # the same sample in two epochs
    assert not torch.equal(pixels[first], pixels[again])


@pytest.mark.parametrize(
    ("world", "micro", "workers"), [(2, 4, 0), (2, 4, 1), (1, 8, 1), (1, 8, 2), (4, 1, 0)], ids=lambda value: str(value)
)
def test_ids_and_pixels_do_not_depend_on_who_reads(
    samples: ImageSamples, reference: tuple[list[int], Tensor, list[int]], world: int, micro: int, workers: int
) -> None:
    """SHA-256 of the ids really read, and every augmented pixel, for ranks, micro-batches and loader processes."""
    ids, pixels, cursors = read(samples, world=world, micro=micro, workers=workers)
    assert sha256(ids) == sha256(reference[0])
    assert torch.equal(pixels, reference[1])
    assert cursors == reference[2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_from_a_cursor_goes_on_where_the_straight_one_was(
    samples: ImageSamples, reference: tuple[list[int], Tensor, list[int]], workers: int
) -> None:
    ids, pixels, _ = read(samples, world=1, micro=8, workers=workers, cursor=reference[2][0])
    assert ids[: (STEPS - 1) * GLOBAL_BATCH] == reference[0][GLOBAL_BATCH:]
    assert torch.equal(pixels[: (STEPS - 1) * GLOBAL_BATCH], reference[1][GLOBAL_BATCH:])


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_leaves_the_global_random_state_alone(samples: ImageSamples, workers: int) -> None:
    """A loader that drew from it at its start would change dropout after a resume."""
    before = torch.get_rng_state()
    read(samples, world=1, micro=8, workers=workers)
    list(batches(samples, 16, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plan_takes_the_largest_equal_micro_batch() -> None:
    assert BatchPlan.derive(64, 32, 1, 2) == BatchPlan(64, 32, 1, 1, 2)
    assert BatchPlan.derive(64, 31) == BatchPlan(64, 16, 4)
    assert BatchPlan.derive(7, 4) == BatchPlan(7, 1, 7)
    assert BatchPlan.derive(6, 100, 0, 2) == BatchPlan(6, 3, 1, 0, 2)


def test_a_world_size_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"a global batch of 12 cannot be shared by 5 workers; 1, 2, 3, 4, 6, 12 can share it"):
        BatchPlan.derive(12, 4, 0, 5)


def test_a_closed_stream_leaves_no_loader_process(samples: ImageSamples) -> None:
    before = set(multiprocessing.active_children())
    order = SampleOrder(len(samples), samples.fingerprint, 7)
    stream = training_steps(samples, order, BatchPlan.derive(8, 8), 0, workers=2)
    next(stream)
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    stream.close()
    assert not set(multiprocessing.active_children()) & started


@dataclass(frozen=True)
class Broken:
    """`samples` with one file that cannot be read."""

    samples: ImageSamples
    index: int

    @property
    def ids(self) -> list[str]:
        return list(self.samples.ids)

    @property
    def fingerprint(self) -> str:
        return self.samples.fingerprint

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        if index == self.index:
            raise UserError("image seven.png: broken", "Remove it")
        return self.samples.read(index, seed)


def stream_of(samples: Broken, workers: int) -> Iterator[object]:
    order = SampleOrder(len(samples), samples.fingerprint, 7)
    return islice(training_steps(samples, order, BatchPlan.derive(8, 4), 0, workers=workers), 5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["training", "measuring"])
def test_a_broken_sample_is_the_same_one_line_error_from_a_loader_process(samples: ImageSamples, workers: int, kind: str) -> None:
    """torch rebuilds an error that crosses from a loader process from its traceback as one text; ours comes as it was."""
    broken = Broken(samples, 7)
    stream = stream_of(broken, workers) if kind == "training" else batches(broken, 4, workers=workers)
    with pytest.raises(UserError) as caught:
        list(stream)
    assert (caught.value.problem, caught.value.fix) == ("image seven.png: broken", "Remove it")
    assert str(caught.value) == "image seven.png: broken. Remove it"


def test_a_truncated_file_met_by_a_loader_process_is_named(few_digits: Path, tmp_path: Path) -> None:
    """The real thing: the file is cut after the folder was listed."""
    for digit in "01":
        (tmp_path / digit).mkdir()
        for number in range(4):
            source = sorted((few_digits / "train" / digit).iterdir())[number]
            (tmp_path / digit / f"{number}.png").write_bytes(source.read_bytes())
    preprocess = ImagePreprocess(resolution=8)
    train = image_splits(tmp_path, preprocess, augment="none", validation_share=0.25, test_share=0.25, seed=0).train
    victim = tmp_path / train.ids[0]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"image {victim}: broken \(.+\)\. Replace or remove the file") as caught:
        list(batches(train, 2, workers=1))
    assert "\n" not in str(caught.value)


def test_batches_are_the_set_once_in_order_and_ranks_take_strides(samples: ImageSamples) -> None:
    whole = list(batches(samples, 16))
    assert [len(batch["index"]) for batch in whole] == [16, 16, 8]
    assert torch.cat([batch["index"] for batch in whole]).tolist() == list(range(40))
    torch.testing.assert_close(whole[0]["image"][3], samples.read(3, None)["image"], rtol=0, atol=0)
    strides = [
        torch.cat([batch["index"] for batch in batches(samples, 16, rank=rank, world_size=3)]).tolist() for rank in range(3)
    ]
    assert strides == [list(range(rank, 40, 3)) for rank in range(3)]

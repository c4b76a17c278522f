"""What the drill puts around a workload: notes of the samples, and faults that strike once, whoever is alive then."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from longhaul.data.samples import Batch, Splits
from longhaul.drill.board import Board, Plan, Worker
from longhaul.drill.dress import DressedSamples, DressedWorkload, Watch
from longhaul.drill.faults import Fault, Kind
from longhaul.drill.full_disk import full_disk
from longhaul.drill.history import History
from longhaul.workloads import Workload


class _Workload:
    """A line through noise."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cast(Tensor, model(batch["image"])).square().mean()


class _Samples:
    ids = ("a", "b", "c", "d")
    fingerprint = "few"

    def __len__(self) -> int:
        return 4

    def read(self, index: int, seed: int | None) -> dict[str, Tensor]:
        return {"image": torch.full((3,), float(index)), "label": torch.tensor(index)}


def _board(tmp_path: Path, *faults: Fault) -> Board:
    board = Board(tmp_path / "board")
    board.create(Plan(faults=faults))
    return board


def _dressed(board: Board, rank: int = 0, attempt: int = 1) -> DressedWorkload:
    worker = Worker(attempt=attempt, rank=rank, world_size=2, pid=1, node="n")
    watch = Watch(board, board.plan(), worker, 4)
    return DressedWorkload(cast(Workload, _Workload()), cast(Splits, SimpleNamespace()), watch)


def _batch(*positions: int) -> Batch:
    indices = torch.tensor([position % 4 for position in positions])
    return {"image": torch.ones(len(positions), 3), "position": torch.tensor(positions), "index": indices}


def _fault(kind: Kind, rank: int = 0, **more: Any) -> Fault:
    return Fault(number=1, kind=kind, step=0, rank=rank, **more)


def _step(workload: DressedWorkload, *positions: int) -> tuple[Tensor, Tensor]:
    model = nn.Linear(3, 1)
    loss = workload.loss(model, _batch(*positions))
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    return loss, model.weight.grad


def test_a_gradient_is_nan_once_and_the_loss_is_not(tmp_path: Path) -> None:
    fault = _fault("nan-gradient", rank=1)
    board = _board(tmp_path, fault)
    other, struck = _dressed(board), _dressed(board, rank=1)
    assert torch.isfinite(_step(struck, 0, 2)[1]).all()  # not armed
    board.set("armed", fault)
    assert torch.isfinite(_step(other, 1, 3)[1]).all()  # not its rank
    loss, gradient = _step(struck, 4, 6)
    assert torch.isfinite(loss)
    assert torch.isnan(gradient).all()
    assert torch.isfinite(_step(struck, 8, 10)[1]).all()
    assert torch.isfinite(_step(_dressed(board, rank=1, attempt=2), 4, 6)[1]).all()  # nor after a restart


def test_memory_runs_out_once(tmp_path: Path) -> None:
    fault = _fault("out-of-memory")
    board = _board(tmp_path, fault)
    board.set("armed", fault)
    workload = _dressed(board)
    with pytest.raises(torch.OutOfMemoryError):
        _step(workload, 0, 2)
    _step(workload, 0, 2)


def test_a_poisoned_sample_is_nan_whenever_it_is_read_and_knows_its_place() -> None:
    samples = DressedSamples(_Samples(), {77: 5}, frozenset({2}))
    assert samples.read(1, 77)["image"].tolist() == [1.0, 1.0, 1.0]
    assert int(samples.read(1, 77)["position"]) == 5
    for seed in (77, None):
        assert torch.isnan(samples.read(2, seed)["image"]).all()
        assert int(samples.read(2, seed)["label"]) == 2


def test_going_back_in_the_data_begins_a_new_turn_also_where_positions_have_shifted(tmp_path: Path) -> None:
    board = _board(tmp_path)
    workload = _dressed(board)
    for first in (0, 8, 9, 17):  # step 1 was done again, one sample later: its first one is excluded
        _step(workload, *range(first, first + 8, 2))
    history = History(board.notes, 8)
    history.read()
    assert [found.line for found in history.passes] == [(1, 0), (1, 0), (1, 1), (1, 1)]


def test_the_search_for_offending_samples_is_not_noted(tmp_path: Path) -> None:
    board = _board(tmp_path)
    workload = _dressed(board)
    workload.loss(nn.Linear(3, 1).eval(), _batch(0))
    history = History(board.notes, 8)
    history.read()
    assert history.passes == []


def test_a_full_disk_has_no_room_for_a_single_byte(tmp_path: Path) -> None:
    with full_disk(tmp_path / "full") as folder:
        if folder is None:
            pytest.skip("this user may not mount")
        with pytest.raises(OSError, match="No space left") as error, (Path(folder) / "shard").open("wb", buffering=0) as file:
            file.write(b"x")
        assert error.value.errno == errno.ENOSPC
    assert not list((tmp_path / "full").iterdir())

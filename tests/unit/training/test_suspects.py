"""Which samples are to blame: found one by one, and nothing of the model is changed by the search."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from longhaul.data.samples import Batch
from longhaul.recipe.schema import TrainingSection
from longhaul.resilience.divergence import SpikeKind, Suspect
from longhaul.training.engine.torch_engine import TorchEngine
from longhaul.training.ranks import Ranks
from longhaul.training.recovery.suspects import find

ALONE = Ranks(0, 1, torch.device("cpu"))
NAN = math.nan


class Root(torch.autograd.Function):
    """The square root of a number's absolute value; at 0 its loss is finite and its gradient is not."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().sqrt()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return upstream / (2 * x.abs().sqrt())


class Network(nn.Module):
    """Batch norm, dropout, and a frozen batch norm that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 5))
        self.frozen = nn.BatchNorm1d(5).eval()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1  # a buffer that also evaluation changes
        np.random.random()
        random.random()
        found: Tensor = self.frozen(self.body(image))
        return found


class Problem:
    """Cross entropy; the image's first number times `weight` decides what is special about a sample."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = functional.cross_entropy(model(batch["image"]), batch["label"], reduction="none")
        rooted = Root.apply(losses * batch["root"])
        return (losses * batch["weight"] + rooted).mean()


def micro_batches(*, weight: Sequence[float] = (1.0,) * 8, root: Sequence[float] = (1.0,) * 8, size: int = 4) -> list[Batch]:
    draws = torch.Generator().manual_seed(1)
    whole = {
        "image": torch.randn(8, 3, 8, 8, generator=draws),
        "label": torch.randint(0, 5, (8,), generator=draws),
        "index": torch.arange(100, 108),
        "weight": torch.tensor(weight),
        "root": torch.tensor(root),
    }
    return [{name: value[at : at + size] for name, value in whole.items()} for at in range(0, 8, size)]


@pytest.fixture
def engine() -> TorchEngine:
    engine = TorchEngine(TrainingSection(steps=1, clip_norm=1.0), Network(), ALONE)
    engine.step(micro_batches(), Problem().loss, 1e-3)
    engine.module.frozen.eval()  # type: ignore[operator]
    return engine


def search(engine: TorchEngine, batches: list[Batch], kind: SpikeKind = "nonfinite") -> list[Suspect]:
    return find(Problem(), engine, batches, ALONE, kind)  # type: ignore[arg-type]


def marked(values: dict[int, float]) -> tuple[float, ...]:
    return tuple(values.get(place, 1.0) for place in range(8))


def test_samples_whose_loss_is_not_finite_are_found_whatever_the_micro_batch(engine: TorchEngine) -> None:
    for size in (1, 2, 8):
        found = search(engine, micro_batches(weight=marked({2: NAN, 5: math.inf}), size=size))
        assert [(one.index, one.reason) for one in found] == [(102, "its loss is nan"), (105, "its loss is inf")]


def test_a_sample_whose_loss_is_finite_and_its_gradient_not_is_found(engine: TorchEngine) -> None:
    (one,) = search(engine, micro_batches(root=marked({6: 0.0})))
    assert (one.index, one.reason) == (106, "its gradient is not finite")
    assert one.loss is not None
    assert math.isfinite(one.loss)


def test_a_sound_batch_has_no_suspect(engine: TorchEngine) -> None:
    assert search(engine, micro_batches()) == []
    assert search(engine, micro_batches(), "sigma") == []


def test_a_loss_far_above_the_batch_is_found_where_the_spike_was_a_leap(engine: TorchEngine) -> None:
    outlier = micro_batches(weight=marked({3: 500.0}))
    (one,) = search(engine, outlier, "sigma")
    assert one.index == 103
    assert one.reason.startswith("its loss is more than 5 times the batch's median of ")
    assert search(engine, outlier, "nonfinite") == []


def test_a_leap_whose_batch_holds_a_nan_is_the_nans(engine: TorchEngine) -> None:
    assert [one.index for one in search(engine, micro_batches(weight=marked({3: 500.0, 4: NAN})), "sigma")] == [104]


def test_a_merely_hard_sample_is_not_to_blame(engine: TorchEngine) -> None:
    assert search(engine, micro_batches(weight=marked({3: 2.0})), "sigma") == []


def test_where_the_weights_are_broken_no_sample_is_to_blame(engine: TorchEngine) -> None:
    with torch.no_grad():
        engine.module.body[4].weight[0, 0] = NAN  # type: ignore[index, operator]
    assert search(engine, micro_batches()) == []


def test_the_search_changes_nothing(engine: TorchEngine) -> None:
    """Weights, buffers, gradients, modes of every part, optimizer, random states: bit for bit."""

    def everything() -> tuple[object, ...]:
        module = engine.module
        return (
            {name: value.clone() for name, value in module.state_dict().items()},
            {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()},
            [part.training for part in module.modules()],
            copy.deepcopy(engine._optimizer.state_dict()),
            torch.get_rng_state(),
            str(np.random.get_state()),
            random.getstate(),
        )

    next(engine.module.parameters()).grad = torch.full((4, 3, 3, 3), 7.0)
    assert engine.module.body.training
    assert not engine.module.frozen.training
    before = everything()
    search(engine, micro_batches(weight=marked({2: NAN}), root=marked({6: 0.0})))
    _assert_same(before, everything())


def test_every_sample_ticks(engine: TorchEngine) -> None:
    ticks: list[int] = []
    find(Problem(), engine, micro_batches(), ALONE, "nonfinite", lambda: ticks.append(1))  # type: ignore[arg-type]
    assert len(ticks) == 8


def _assert_same(before: object, after: object) -> None:
    if isinstance(before, Tensor):
        assert isinstance(after, Tensor)
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert isinstance(after, dict)
        assert before.keys() == after.keys()
        for key, value in before.items():
            _assert_same(value, after[key])
    elif isinstance(before, list | tuple):
        assert isinstance(after, list | tuple)
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            _assert_same(one, other)
    else:
        assert before == after

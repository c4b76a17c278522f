"""The plain engine on one rank: accumulation, clipping, precision, and a save that goes on bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from longhaul.recipe.schema import OptimizerSection, TrainingSection
from longhaul.training.engine.optimizer import build_optimizer, set_rate
from longhaul.training.engine.torch_engine import TorchEngine
from longhaul.training.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
Batch = dict[str, Tensor]


def network(dropout: float = 0.0) -> nn.Sequential:
    """Convolution, layer norm, dropout, head; no batch norm, whose statistics depend on the micro-batch."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(4 * 6 * 6), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * 6 * 6, 5)
    )


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch["image"]), batch["label"])


def batches(steps: int, *, size: int = 12, dtype: torch.dtype = torch.float32) -> list[Batch]:
    draws = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randn(size, 3, 8, 8, generator=draws).to(dtype),
            "label": torch.randint(0, 5, (size,), generator=draws),
        }
        for _ in range(steps)
    ]


def cut(batch: Batch, parts: int) -> list[Batch]:
    pieces = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: pieces[name][i] for name in pieces} for i in range(parts)]


def section(**fields: Any) -> TrainingSection:
    base = {"steps": 1, "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}}
    return TrainingSection.model_validate(base | fields)


def engine(dropout: float = 0.0, *, dtype: torch.dtype = torch.float32, **fields: Any) -> TorchEngine:
    return TorchEngine(section(**fields), network(dropout).to(dtype), ALONE)


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_micro_batches_add_up_to_the_global_batch(parts: int, optimizer: str) -> None:
    """Losses, gradient norm and weights after five steps, against plain torch on whole batches, all in float64."""
    options = {"name": optimizer, "lr": 1e-3, "weight_decay": 0.1}
    ours = engine(dtype=torch.float64, optimizer=options, clip_norm=0.5)
    model = network().double()
    plain = build_optimizer(OptimizerSection.model_validate(options), model)
    for batch in batches(5, dtype=torch.float64):
        plain.zero_grad()
        expected = loss(model, batch)
        expected.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= min(1.0, 0.5 / (float(norm) + 1e-6))  # the 1e-6 is torch's, against a norm of 0
        set_rate(plain, 0.01)
        plain.step()
        result = ours.step(cut(batch, parts), loss, 0.01)
        assert result.grad_norm is not None
        assert float(result.loss) == pytest.approx(expected.item(), abs=1e-6)
        assert float(result.grad_norm) == pytest.approx(float(norm), rel=1e-9)
    for got, wanted in zip(ours.module.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_float32_accumulation_stays_near_the_float64_reference() -> None:
    """One SGD step: whole batch in float64 against micro-batches in float32."""
    options = {"name": "sgd", "lr": 0.1, "momentum": 0.0}
    ours, reference = engine(optimizer=options), engine(dtype=torch.float64, optimizer=options)
    batch = batches(1)[0]
    ours.step(cut(batch, 4), loss, 0.1)
    reference.step([batch | {"image": batch["image"].double()}], loss, 0.1)
    for got, wanted in zip(ours.module.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6)


def test_clipping_is_torchs_and_reports_the_norm_before_it() -> None:
    ours = engine(clip_norm=0.01, optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0})
    model, batch = network(), batches(1)[0]
    loss(model, batch).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    before = [p.detach().clone() for p in ours.module.parameters()]
    result = ours.step([batch], loss, 1.0)
    assert result.grad_norm is not None
    assert float(result.grad_norm) == float(norm) > 0.01
    for old, new, reference in zip(before, ours.module.parameters(), model.parameters(), strict=True):
        assert reference.grad is not None
        torch.testing.assert_close(old - new, reference.grad, rtol=1e-4, atol=1e-7)


def test_without_a_limit_no_norm_is_computed() -> None:
    assert engine().step(batches(1), loss, 0.01).grad_norm is None


def test_the_rate_is_the_steps_own() -> None:
    """A rate of 0 moves nothing, whatever the recipe's base rate."""
    ours = engine()
    before = [p.detach().clone() for p in ours.module.parameters()]
    ours.step(batches(1), loss, 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, ours.module.parameters(), strict=True))


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    ours, seen = engine(precision="bf16"), []
    ours.module[-1].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    losses = []
    for _ in range(10):
        losses.append(float(ours.step(cut(batches(1)[0], 2), loss, 0.01).loss))
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in ours.module.parameters()} == {torch.float32}
    assert losses[-1] < losses[0]
    with ours.autocast():
        assert ours.module(batches(1)[0]["image"]).dtype == torch.bfloat16


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_saved_engine_goes_on_bit_by_bit(tmp_path: Path, optimizer: str) -> None:
    fields = {"optimizer": {"name": optimizer, "lr": 1e-3, "weight_decay": 0.1}, "clip_norm": 1.0}
    data = batches(6)
    straight = engine(0.3, **fields)
    for batch in data[:3]:
        straight.step(cut(batch, 2), loss, 0.01)
    straight.snapshot()(tmp_path)
    save_file(straight.weights(), tmp_path / "model.safetensors")
    state = torch.get_rng_state()
    for batch in data[3:]:
        straight.step(cut(batch, 2), loss, 0.01)

    resumed = engine(0.3, **fields)
    resumed.step([data[5]], loss, 0.5)  # whatever it held before is gone after a load
    resumed.load(tmp_path)
    torch.set_rng_state(state)
    for batch in data[3:]:
        resumed.step(cut(batch, 2), loss, 0.01)
    for got, wanted in zip(resumed.module.parameters(), straight.module.parameters(), strict=True):
        assert torch.equal(got, wanted)
    assert resumed.weights().keys() == straight.module.state_dict().keys()


def test_weights_are_copies_that_can_be_written() -> None:
    ours = engine()
    weights = ours.weights()
    assert all(value.is_contiguous() and not value.requires_grad and value.device.type == "cpu" for value in weights.values())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_biases_and_norms_do_not_decay(name: str) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(OptimizerSection.model_validate({"name": name, "lr": 0.2, "weight_decay": 0.3}), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert names == {"0.weight": None, "0.bias": 0.0, "2.weight": 0.0, "2.bias": 0.0, "5.weight": 0.3, "5.bias": 0.0}
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}
    set_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_optimizer_options_are_the_recipes() -> None:
    sgd = build_optimizer(OptimizerSection(name="sgd", momentum=0.0), network())
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.0, False)
    assert build_optimizer(OptimizerSection(name="sgd"), network()).param_groups[0]["nesterov"] is True
    adam = build_optimizer(OptimizerSection(name="adam", betas=(0.8, 0.9)), network())
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["betas"] == (0.8, 0.9)


def test_an_overflow_of_the_loss_scale_is_no_gradient_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's scaler begins too high on purpose, skips the step and lowers its scale; no rollback is wanted for that."""
    ours = engine(clip_norm=1.0)
    ours._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    results = [ours.step([batches(1)[0]], lambda model, batch: 1e6 * loss(model, batch), 0.01) for _ in range(3)]
    assert all(result.grad_norm is not None and torch.isfinite(result.grad_norm) for result in results)
    assert all(torch.isfinite(parameter).all() for parameter in ours.module.parameters())
    assert ours._scaler.get_scale() < 2.0**127

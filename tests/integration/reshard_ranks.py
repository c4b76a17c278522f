"""What each rank of `test_reshard` runs: `python reshard_ranks.py PHASE ROOT RANK WORLD_SIZE PORT`, over gloo.

    begin     train, snapshot, train on, write; and what the state was at the snapshot
    shrink    load the universal form of it; say what the state is; train, snapshot, write; again what the state was
    grow      the same once more

It is a script of its own because every rank is a process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from longhaul.data.loader import BatchPlan
from longhaul.recipe.schema import TrainingSection
from longhaul.training.engine.deepspeed_engine import DeepSpeedEngine
from longhaul.training.ranks import Ranks

CASES = {
    f"{engine}-{optimizer}-{precision}": (engine, optimizer, precision)
    for engine in ("zero1", "zero2", "zero3")
    for optimizer, precision in (("adamw", "fp32"), ("sgd", "fp32"), ("adamw", "bf16"))
}
KEYS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
State = dict[str, dict[str, Any]]
GLOBAL_BATCH = 8


def network() -> nn.Sequential:
    """Odd sizes, so that shards need padding; batch norm's buffers; a frozen layer; no more than two numbers without decay."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False), nn.Flatten(), nn.Linear(180, 7, bias=False), nn.GELU(),
        nn.Linear(7, 3, bias=False), nn.Linear(3, 2),
    )  # fmt: skip
    model[5].weight.requires_grad_(False)
    return model


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch["image"]), batch["label"])


def train(engine: DeepSpeedEngine, plan: BatchPlan, steps: range) -> list[float]:
    losses = []
    for step in steps:
        draws = torch.Generator().manual_seed(step)
        whole = {"image": torch.randn(GLOBAL_BATCH, 3, 8, 8, generator=draws), "label": torch.arange(GLOBAL_BATCH) % 2}
        own = {name: value[plan.rank :: plan.world_size] for name, value in whole.items()}
        micro = [{name: value[at : at + plan.micro_batch] for name, value in own.items()}
                 for at in range(0, len(own["label"]), plan.micro_batch)]  # fmt: skip
        losses.append(float(engine.step(micro, loss, 0.01 / (1 + step)).loss))
    return losses


def build(case: str, ranks: Ranks) -> tuple[DeepSpeedEngine, BatchPlan]:
    engine, optimizer, precision = CASES[case]
    section = TrainingSection.model_validate(
        {"steps": 9, "engine": engine, "precision": precision, "clip_norm": 0.5, "global_batch": GLOBAL_BATCH, "micro_batch": 2,
         "optimizer": {"name": optimizer, "lr": 0.01, "weight_decay": 0.1}}
    )  # fmt: skip
    plan = BatchPlan.derive(GLOBAL_BATCH, 2, ranks.rank, ranks.world_size)
    return DeepSpeedEngine(section, network(), plan, ranks), plan


def state_of(engine: DeepSpeedEngine, keys: tuple[str, ...]) -> State:
    """Every parameter's float32 weights and optimizer state, gathered whole; the rest of what a checkpoint must bring."""
    zero: Any = engine._engine.optimizer
    own = {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    state: State = {name: {} for name in own}
    for name, parameter in own.items():
        for key in ("fp32", *keys):
            if hasattr(parameter, "ds_id"):
                whole = parameter._z3_optimizer.get_full_hp_param(parameter, None if key == "fp32" else key)  # type: ignore[attr-defined]
            else:
                whole = _gather(zero, parameter, key)
            state[name][key] = whole.clone()
    steps = {float(values["step"]) for values in zero.optimizer.state.values() if "step" in values}
    options = [{name: value for name, value in group.items() if name != "params"} for group in zero.optimizer.param_groups]
    state["others"] = {"steps": steps, "options": options, "global_steps": engine._engine.global_steps}
    state["weights"] = {name: value.clone() for name, value in engine.weights().items()}
    return state


def _gather(zero: Any, parameter: nn.Parameter, key: str) -> Tensor:
    """From the optimizer's own flat tensors, by the addresses that DeepSpeed keeps for the parameter."""
    whole = torch.zeros(parameter.numel())
    where = parameter._hp_mapping  # type: ignore[attr-defined]
    if where is not None:
        flat = zero.single_partition_of_fp32_groups[where.param_group_index]
        source = flat.detach() if key == "fp32" else zero.optimizer.state[flat][key]
        at, to = where.hp_fragment_address, where.lp_fragment_address
        whole[to.start : to.start + to.numel] = source[at.start : at.start + at.numel]
    dist.all_reduce(whole)
    return whole.view_as(parameter)


def run(phase: str, root: Path, ranks: Ranks) -> None:
    before = {"begin": None, "shrink": "begin", "grow": "shrink"}[phase]
    first = {"begin": 0, "shrink": 3, "grow": 6}[phase]
    for case in CASES:
        keys = KEYS[CASES[case][1]]
        engine, plan = build(case, ranks)
        if (root / case / f"{before}-control").exists():
            engine.load_universal(root / case / f"{before}-control", root / case / str(before))
            _say(root / case / f"{phase}-control.pt", state_of(engine, keys), ranks)
        if before is not None:
            engine.load_universal(root / case / f"{before}-universal", root / case / before)
            _say(root / case / f"{phase}-loaded.pt", state_of(engine, keys), ranks)
        losses = train(engine, plan, range(first, first + 3))
        folder = root / case / phase
        folder.mkdir(parents=True, exist_ok=True)
        write, state = engine.snapshot(), state_of(engine, keys)
        on = train(engine, plan, range(20, 22))  # what is written is the snapshot, not what the tensors hold by then
        write(folder)
        if ranks.is_first:
            save_file(state["weights"], folder / "model.safetensors")
        dist.barrier()
        _say(root / case / f"{phase}.pt", state, ranks)
        engine.load(folder)  # a rollback: into an engine that has gone on
        _say(root / case / f"{phase}-reloaded.pt", state_of(engine, keys), ranks)
        again = train(engine, plan, range(20, 22))
        _say(root / case / f"{phase}-losses.pt", {"": {"before": losses, "on": on, "again": again}}, ranks)


def _say(path: Path, state: State, ranks: Ranks) -> None:
    if ranks.is_first:
        torch.save(state, path)


def main() -> None:
    phase, root = sys.argv[1], Path(sys.argv[2])
    rank, world_size, port = map(int, sys.argv[3:])
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size)
    )
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    run(phase, root, Ranks(rank, world_size, torch.device("cpu")))
    dist.destroy_process_group()
    # Gloo's threads may still hold tensors when the interpreter ends, and then abort the process; all that counts is on disk.
    os._exit(0)


if __name__ == "__main__":
    main()

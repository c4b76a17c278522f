"""DeepSpeed's universal checkpoint: one folder a parameter with whole tensors, which any number of ranks can load.

Wraps `deepspeed.checkpoint.ds_to_universal` (shards to whole tensors) and the loading behind `checkpoint.load_universal`,
and completes what they leave out:

- conversion knows the two moments of Adam only: SGD's momentum travels under the name of the first;
- nothing brings back buffers and frozen parameters: they come from the checkpoint's `model.safetensors`;
- stage 3 gives every parameter group the options of the first, so that biases would begin to decay, and all groups one and
  the same step counter, which would then count each group's step;
- stages 1 and 2 fail on a rank that holds nothing but padding of a small group.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ENGINE = "engine"
"""DeepSpeed's tag: the folder of its files, in a checkpoint and in its universal form."""

_LENT = "momentum_buffer"
_OPTIONS = Path("zero") / "optimizer_state.pt"


# ---- shards to whole tensors ---------------------------------------------------------------------------------------


def to_universal(checkpoint_folder: Path, target: Path) -> None:
    """Write the universal form of a checkpoint's ZeRO shards. Needs neither a process group nor a GPU.

    Args:
        checkpoint_folder: a local folder with `engine/`, the files of all ranks.
        target: an empty local folder, to write `engine/` below.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing here needs another one
    from deepspeed.checkpoint import ds_to_universal

    source, output = checkpoint_folder / ENGINE, target / ENGINE
    with tempfile.TemporaryDirectory(prefix="longhaul-lent-") as scratch:
        lent = _lend_adam_names(source, Path(scratch))
        options = argparse.Namespace(
            input_folder=str(lent),
            output_folder=str(output),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # without tensor parallelism there is nothing that a checkpoint would have to tell
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
    (target / "latest_universal").unlink()
    _strip(output)


def _lend_adam_names(source: Path, scratch: Path) -> Path:
    """A folder with the same files, where every state has the names of Adam's."""
    shards = sorted(source.glob("*_optim_states.pt"))
    if not shards or all("exp_avg_sq" in state for state in _states(_read(shards[0]))[0]):
        return source
    for file in source.iterdir():
        if file not in shards:
            (scratch / file.name).symlink_to(file)
    for file in shards:
        shard = _read(file)
        for state, size in zip(*_states(shard), strict=True):
            momentum = state.pop(_LENT, None)
            state.update(exp_avg=torch.zeros(size) if momentum is None else momentum, exp_avg_sq=torch.zeros(size))
            state.setdefault("step", torch.tensor(0.0))
        torch.save(shard, scratch / file.name)
    return scratch


def _states(shard: dict[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
    """A shard's optimizer states by flat group, and the sizes of those groups with their padding."""
    zero = shard["optimizer_state_dict"]
    is_stage3 = "fp32_flat_groups" in zero
    flat = zero["fp32_flat_groups" if is_stage3 else "single_partition_of_fp32_groups"]
    states = zero["optimizer_state_dict" if is_stage3 else "base_optimizer_state"]["state"]
    paddings = zero.get("group_paddings", [0] * len(flat))
    sizes = [tensor.numel() + padding for tensor, padding in zip(flat, paddings, strict=True)]
    return [states.setdefault(number, {}) for number in range(len(flat))], sizes


def _strip(output: Path) -> None:
    """Drop what DeepSpeed copies along and never reads: a whole shard, and the files of all ranks but the first."""
    state = _read(output / _OPTIONS)
    if "fp32_flat_groups" in state:
        del state["fp32_flat_groups"]
        inner = state["optimizer_state_dict"]
        inner["state"] = {number: {"step": own["step"]} for number, own in inner["state"].items()}
        torch.save(state, output / _OPTIONS)
    for file in output.glob("*_model_states.pt"):
        if re.match(r"zero_pp_rank_(?!0_)", file.name):
            file.unlink()


# ---- whole tensors to a rank's part --------------------------------------------------------------------------------


def load_universal(engine: Any, universal: Path, weights: dict[str, Tensor]) -> dict[str, Any] | None:
    """Load the universal form of a checkpoint; all ranks must call it.

    Args:
        engine: a `deepspeed.DeepSpeedEngine` with ZeRO.
        universal: what `to_universal` has written.
        weights: whole weights and buffers of the same checkpoint.

    Returns:
        What was saved beside DeepSpeed's own state; None where DeepSpeed finds nothing in `universal`.
    """
    zero = engine.optimizer
    if not engine.zero_optimization_partition_weights():
        zero.load_hp_checkpoint_state_from_checkpoint_dir = partial(_load_partitions, zero)
    engine._config.load_universal_checkpoint = True
    try:
        path, client = engine.load_checkpoint(str(universal), tag=ENGINE)
    finally:
        engine._config.load_universal_checkpoint = False
    if path is None:
        return None
    for group, options in zip(zero.optimizer.param_groups, _read(universal / ENGINE / _OPTIONS)["param_groups"], strict=True):
        group.update({name: value for name, value in options.items() if name != "params"})
    for state in zero.optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()
    _give_back_lent(zero.optimizer)
    _load_unoptimized(engine.module, weights)
    return dict(client)


def _load_partitions(zero: Any, groups: str, folder: str) -> None:
    """`ZeROOptimizer.load_hp_checkpoint_state_from_checkpoint_dir`, also where this rank has no part of a group.

    Args:
        zero: the optimizer of stage 1 or 2.
        groups: the attribute of `zero` with the parameters by group.
        folder: the universal checkpoint's.
    """
    from deepspeed.utils.tensor_fragment import map_to_flat_opt_states

    source = Path(folder) / "zero"
    zero._load_global_state(_read(Path(folder) / _OPTIONS))
    for group, parameters in zip(zero.optimizer.param_groups, getattr(zero, groups), strict=True):
        flat, names, steps = group["params"][0], set[str](), []
        for parameter in parameters:
            if parameter._hp_mapping is not None:
                steps.append(parameter.load_hp_checkpoint_state(str(source / zero.param_names[parameter]), 0, 1))
                names.update(parameter._hp_mapping.get_optim_state_keys())
        if steps:
            zero.optimizer.state[flat]["step"] = steps[0]
        map_to_flat_opt_states(flat, parameters, zero.optimizer.state, names)


def _give_back_lent(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, torch.optim.SGD):
        for state in optimizer.state.values():
            momentum = state.pop("exp_avg", None)
            state.clear()
            if optimizer.defaults["momentum"] and momentum is not None:
                state[_LENT] = momentum


def _load_unoptimized(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Buffers and frozen parameters."""
    import deepspeed

    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                    parameter.copy_(weights[name])


def _read(path: Path) -> Any:
    """DeepSpeed's files hold objects of its own; they come from a checkpoint that has been verified."""
    return torch.load(path, map_location="cpu", weights_only=False)

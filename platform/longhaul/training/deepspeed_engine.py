"""DeepSpeed: ZeRO stages 1, 2 and 3, with optional offload of the optimizer to the CPU.

Wraps `deepspeed.initialize`. Ray Train has made the process group already; DeepSpeed attaches to it. On a machine without
a GPU it runs on gloo (`DS_ACCELERATOR=cpu`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longhaul.data.loader import BatchPlan
from longhaul.data.samples import Batch
from longhaul.errors import IntegrityError
from longhaul.recipe.schema import TrainingSection
from longhaul.training.engine import LossFunction, StepResult, autocast, to_device
from longhaul.training.optimizer import build_optimizer, set_rate
from longhaul.training.ranks import Ranks

_TAG = "engine"


class DeepSpeedEngine:
    """See `engine.Engine`; every rank holds and saves its own shards."""

    def __init__(self, section: TrainingSection, model: nn.Module, plan: BatchPlan, ranks: Ranks) -> None:
        self._section = section
        self._ranks = ranks
        if ranks.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read once, when deepspeed is imported
        import deepspeed

        backend = "gloo" if ranks.device.type == "cpu" else "nccl"
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        self._deepspeed = deepspeed
        self._stage = int(section.engine[-1])
        model = model.to(ranks.device)
        self._optimizer = build_optimizer(section.optimizer, model)
        self._engine: Any = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=deepspeed_config(section, plan), dist_init_required=False
        )[0]

    @property
    def module(self) -> nn.Module:
        """The model; in stage 3 its hooks gather each layer's weights as it is called."""
        module: nn.Module = self._engine.module
        return module

    def autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision."""
        return autocast(self._section.precision, self._ranks.device)

    def step(self, micro_batches: Sequence[Batch], loss: LossFunction, rate: float) -> StepResult:
        """DeepSpeed scales each loss by the accumulation and steps with the last micro-batch."""
        self._engine.train()
        set_rate(self._optimizer, rate)
        total = torch.zeros((), device=self._ranks.device)
        for batch in micro_batches:
            with self.autocast():  # DeepSpeed's own covers the module alone, and would leave the loss in half precision
                value = loss(self._engine, to_device(batch, self._ranks.device))
            self._engine.backward(value)
            self._engine.step()
            total += value.detach().float() / len(micro_batches)
        norm = self._engine.get_global_grad_norm()
        return StepResult(total, None if norm is None else torch.as_tensor(norm, dtype=torch.float32))

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers on rank 0; stage 3 gathers them."""
        parameters = list(self.module.parameters()) if self._stage == 3 else []
        with self._deepspeed.zero.GatheredParameters(parameters, enabled=self._stage == 3):
            if not self._ranks.is_first:
                return {}
            return {name: value.detach().float().cpu().clone().contiguous() if value.is_floating_point() else value.cpu().clone()
                    for name, value in self.module.state_dict().items()}  # fmt: skip

    def save(self, folder: Path) -> None:
        """DeepSpeed's own checkpoint; every rank writes its shards."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """DeepSpeed's own checkpoint, for the same world size.

        Raises:
            IntegrityError: DeepSpeed finds none in `folder` (it says so by its return value alone).
        """
        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        if path is None:
            raise IntegrityError(f"checkpoint {folder}: DeepSpeed finds nothing of its own in it")


def deepspeed_config(section: TrainingSection, plan: BatchPlan) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe and a plan of batches."""
    config: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": section.clip_norm or 0.0,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": int(section.engine[-1])},
    }
    if section.offload == "cpu":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if section.precision != "fp32":
        config["torch_autocast"] = {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[section.precision]}
    return config

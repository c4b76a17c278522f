"""Plain torch: DistributedDataParallel over gloo or NCCL, autocast, GradScaler for fp16."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from longhaul.data.samples import Batch
from longhaul.recipe.schema import TrainingSection
from longhaul.training.checkpoints.host_copy import HostCopy
from longhaul.training.engine.engine import LossFunction, StepResult, Writer, autocast, to_device
from longhaul.training.engine.optimizer import build_optimizer, set_rate
from longhaul.training.ranks import Ranks

_FILE = "engine/torch.pt"


class TorchEngine:
    """See `engine.Engine`; every rank holds the whole state, rank 0 saves it."""

    def __init__(self, section: TrainingSection, model: nn.Module, ranks: Ranks) -> None:
        self._section = section
        self._ranks = ranks
        self._clip_norm = section.clip_norm
        self._weights_copy, self._state_copy = HostCopy(), HostCopy()
        self._model = model.to(ranks.device)
        self._optimizer = build_optimizer(section.optimizer, self._model)
        self._scaler = torch.amp.GradScaler(ranks.device.type, enabled=section.precision == "fp16")
        self._parallel: nn.Module = self._model
        if ranks.world_size > 1:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            # Buffers are averaged before each evaluation and save instead of broadcast at each forward pass.
            self._parallel = DistributedDataParallel(
                self._model, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        return self._model

    def autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision."""
        return autocast(self._section.precision, self._ranks.device)

    def step(self, micro_batches: Sequence[Batch], loss: LossFunction, rate: float) -> StepResult:
        """Gradients are summed over the micro-batches and averaged over ranks once, with the last one."""
        self._parallel.train()
        total = torch.zeros((), device=self._ranks.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with self._without_sync(not last):
                with self.autocast():
                    value = loss(self._parallel, to_device(batch, self._ranks.device)) / len(micro_batches)
                self._scaler.scale(value).backward()
            total += value.detach()
        norm = None
        if self._clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
            if self._scaler.is_enabled():  # its overflow is its own affair: it skips the step and lowers its scale
                norm = torch.nan_to_num(norm, nan=0.0, posinf=0.0)
        set_rate(self._optimizer, rate)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(total, norm)

    def set_clip_norm(self, norm: float) -> None:
        """Clip to `norm` from now on."""
        self._clip_norm = norm

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers, on rank 0."""
        if not self._ranks.is_first:
            return {}
        weights: dict[str, Tensor] = self._weights_copy(dict(self._model.state_dict()))
        return weights

    def snapshot(self) -> Writer:
        """Rank 0 copies optimizer and scaler; the others nothing."""
        if not self._ranks.is_first:
            return lambda folder: None
        state = self._state_copy({"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()})

        def write(folder: Path) -> None:
            (folder / _FILE).parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / _FILE)

        return write

    def load(self, folder: Path) -> None:
        """Every rank reads the whole state."""
        state = torch.load(folder / _FILE, map_location=self._ranks.device, weights_only=True)
        self._model.load_state_dict(load_file(folder / "model.safetensors"))
        options = [{name: value for name, value in group.items() if name != "params"} for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state["optimizer"])
        for group, of_recipe in zip(self._optimizer.param_groups, options, strict=True):
            group.update(of_recipe)  # a member of a population goes on from another's state, with values of its own
        self._scaler.load_state_dict(state["scaler"])

    def _without_sync(self, active: bool) -> AbstractContextManager[None]:
        if active and isinstance(self._parallel, DistributedDataParallel):
            return self._parallel.no_sync()
        return contextlib.nullcontext()

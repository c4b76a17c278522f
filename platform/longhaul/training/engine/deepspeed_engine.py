"""DeepSpeed: ZeRO stages 1, 2 and 3, with optional offload of the optimizer to the CPU.

Wraps `deepspeed.initialize`. Ray Train has made the process group already; DeepSpeed attaches to it. On a machine without
a GPU it runs on gloo (`DS_ACCELERATOR=cpu`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from longhaul.data.loader import BatchPlan
from longhaul.data.samples import Batch
from longhaul.errors import IntegrityError
from longhaul.recipe.schema import TrainingSection
from longhaul.training.checkpoints.host_copy import HostCopy
from longhaul.training.checkpoints.universal import ENGINE, load_universal
from longhaul.training.engine.engine import LossFunction, StepResult, Writer, autocast, to_device
from longhaul.training.engine.optimizer import build_optimizer, set_rate
from longhaul.training.ranks import Ranks

_SCALER = "longhaul_scaler"


class DeepSpeedEngine:
    """See `engine.Engine`; every rank holds and saves its own shards."""

    def __init__(self, section: TrainingSection, model: nn.Module, plan: BatchPlan, ranks: Ranks) -> None:
        self._section = section
        self._ranks = ranks
        self._clip_norm = section.clip_norm or 0.0
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
        self._files = _HostFiles(self._engine.checkpoint_engine, whole_weights=self._stage < 3)
        self._engine.checkpoint_engine = self._files
        self._weights_copy = HostCopy()

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

    def set_clip_norm(self, norm: float) -> None:
        """Clip to `norm` from now on."""
        self._clip_norm = norm
        self._engine.optimizer.clip_grad = norm

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers on rank 0; stage 3 gathers them."""
        parameters = list(self.module.parameters()) if self._stage == 3 else []
        with self._deepspeed.zero.GatheredParameters(parameters, enabled=self._stage == 3):
            if not self._ranks.is_first:
                return {}
            state = self.module.state_dict()
            whole: dict[str, Tensor] = self._weights_copy(
                {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
            )
            return whole

    def snapshot(self) -> Writer:
        """What `DeepSpeedEngine.save_checkpoint` writes, each rank its shards, in the host's memory.

        The collectives and the copies happen here; the returned function only writes files.
        """
        with tempfile.TemporaryDirectory(prefix="longhaul-snapshot-") as scratch:
            self._files.begin(Path(scratch))
            client = {} if self._scaler is None else {_SCALER: self._scaler.state_dict()}
            self._engine.save_checkpoint(scratch, tag=ENGINE, client_state=client, save_latest=False)
        return self._files.writer()

    def load(self, folder: Path) -> None:
        """DeepSpeed's own checkpoint, for the same world size.

        Raises:
            IntegrityError: DeepSpeed finds none in `folder` (it says so by its return value alone).
        """
        self._files.weights = folder / "model.safetensors"
        path, client = self._engine.load_checkpoint(str(folder), tag=ENGINE)
        if path is None:
            raise IntegrityError(f"checkpoint {folder}: DeepSpeed finds nothing of its own in it")
        self._load_scaler(client)
        self.set_clip_norm(self._clip_norm)  # what is in force, not what was when it was saved

    def load_universal(self, universal: Path, folder: Path) -> None:
        """A checkpoint of any world size.

        Args:
            universal: what `universal.to_universal` has written.
            folder: the checkpoint that it was made from, for `model.safetensors`.

        Raises:
            IntegrityError: DeepSpeed finds nothing in `universal`.
        """
        client = load_universal(self._engine, universal, load_file(folder / "model.safetensors"))
        if client is None:
            raise IntegrityError(f"universal checkpoint {universal}: DeepSpeed finds nothing of its own in it")
        self._load_scaler(client)
        self.set_clip_norm(self._clip_norm)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """That of fp16, which DeepSpeed makes and does not save."""
        scaler: torch.amp.GradScaler | None = self._engine.optimizer.torch_autocast_gradscaler
        return scaler

    def _load_scaler(self, client: dict[str, Any]) -> None:
        if self._scaler is not None and _SCALER in client:
            self._scaler.load_state_dict(client[_SCALER])


class _HostFiles:
    """Stands in for `deepspeed.runtime.checkpoint_engine.CheckpointEngine`: what is saved stays in the host's memory.

    `model.safetensors` has the whole weights already. So where a rank holds them whole, they are left out here, and put
    back as the file is read.
    """

    def __init__(self, real: Any, *, whole_weights: bool) -> None:
        self.weights: Path | None = None
        self._real = real
        self._whole_weights = whole_weights
        self._copy = HostCopy()
        self._root = Path()
        self._files: dict[str, Any] = {}

    def begin(self, root: Path) -> None:
        """Start over; names are relative to `root`."""
        self._root, self._files = root, {}

    def writer(self) -> Writer:
        """Writes what was saved since `begin` below a folder."""
        files = self._files

        def write(folder: Path) -> None:
            for name, state in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, folder / name)

        return write

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Copy."""
        if self._whole_weights and "module" in state_dict:
            state_dict = {**state_dict, "module": None}
        name = Path(path).relative_to(self._root).as_posix()
        self._files[name] = self._copy({name: state_dict})[name]

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a file; whole weights come from `model.safetensors`."""
        state = self._real.load(path, map_location=map_location)
        if self._whole_weights and "module" in state and self.weights is not None:
            state["module"] = load_file(self.weights)
        return state

    def create(self, info: object) -> None:
        """A save begins."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """No folder is needed."""

    def commit(self, info: object) -> bool:
        """A save is complete."""
        return True

    def is_data_parallel_writer(self, rank: int) -> bool:
        """Who saves what all ranks have."""
        return rank == 0

    def is_decoupled(self) -> bool:
        """DeepSpeed need not wait for anything."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """Copies have memory of their own."""
        return False


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

"""The contract between a problem and the trainer.

A `Workload` knows its model, loss, metrics, data and export signature. It knows nothing about how it is run: no rank, no
device, no Ray. The trainer knows all of that and nothing about the problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from longhaul.data.samples import Batch, Splits

if TYPE_CHECKING:  # a GPU machine without torchmetrics can run what is exported
    from torchmetrics import MetricCollection

Precision = Literal["fp32", "fp16", "bf16"]
"""Arithmetic of an exported graph."""


@dataclass(frozen=True)
class Goal:
    """The validation metric that decides which checkpoint is best, such as `top1`, and which way is better."""

    metric: str
    direction: Literal["max", "min"]


class TensorSpec(BaseModel):
    """One input or output of an exported model; `shape` leaves out the batch dimension, which comes first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: Literal["float32", "int32", "int64", "uint8"]
    shape: tuple[int, ...]


class Signature(BaseModel):
    """What an exported model takes and gives, and what a client must know to use it.

    Attributes:
        task: such as `classification`.
        inputs, outputs: in the order of the model's `forward`.
        classes: the class names by index; empty where the task has none.
        preprocess: fields of the preprocessing that `inputs[0]` expects (`data.preprocess.ImagePreprocess`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    preprocess: dict[str, Any] = {}


class Workload(Protocol):
    """One problem, built from a recipe; see `workloads.build`."""

    @property
    def goal(self) -> Goal: ...

    @property
    def splits(self) -> Splits: ...

    def build_model(self, *, initial: bool = True) -> nn.Module:
        """The network; `forward` takes the signature's `inputs` by position.

        Args:
            initial: with the weights that training starts from (random ones from torch's global state, published ones, a
                file's). False where weights are about to be loaded: nothing is then downloaded or read.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch, a scalar to differentiate."""
        ...

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the scalars that `metrics` compute to."""
        ...

    def metrics(self) -> MetricCollection:
        """Fresh metrics; each value of `compute()` is a scalar, or a (C, C) confusion matrix."""
        ...

    def measure(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> None:
        """Run the model on a batch and update the metrics; the caller has set eval mode and no_grad."""
        ...

    def pictures(self, model: nn.Module) -> dict[str, bytes]:
        """PNG files by name that show what the best model does; drawn once, at the end of a run, in evaluation mode."""
        ...

    def exportable(self, model: nn.Module, precision: Precision) -> nn.Module:
        """The module that `longhaul export` makes a graph of: same inputs and outputs as `model`, which stays as it is.

        Raises:
            UserError: this precision cannot be had.
        """
        ...

    def signature(self) -> Signature:
        """What `longhaul export` writes."""
        ...

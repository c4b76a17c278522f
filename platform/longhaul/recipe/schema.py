"""The schema of a recipe: everything that decides a run, typed, frozen, with its defaults here and nowhere else.

Each section belongs to the room that is built from it. Contradictions between fields are refused here, naming the fix.
Durations (`recipe.duration`) may be given in steps, epochs or samples. `recipe.load` reads YAML into a `Recipe`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from longhaul.recipe.duration import Duration, duration
from longhaul.recipe.flatten import flat
from longhaul.recipe.inputs import DataSection
from longhaul.recipe.networks import DetectorSection, NetworkSection
from longhaul.recipe.problems import ClassificationSection, ProblemSection
from longhaul.recipe.schedules import ConstantSchedule, EarlyStopping, OneCycleSchedule, ScheduleSection
from longhaul.recipe.section import NonNegative, Number, Positive, PositiveFloat, Section, Share

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


class OptimizerSection(Section):
    """How weights follow gradients."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    """Base learning rate, for the global batch."""
    weight_decay: NonNegative = 0.0
    """Decay a step, relative to lr; biases and norms are left out."""
    momentum: Share = 0.9
    """SGD only."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam and AdamW only."""


class TrainingSection(Section):
    """The loop: how long, in what batches, with which engine."""

    epochs: PositiveFloat | None = None
    """Length of the run in passes over the data; exactly one of epochs, steps and samples."""
    steps: Positive | None = None
    """Length of the run in optimizer steps."""
    samples: Positive | None = None
    """Length of the run in samples."""
    global_batch: Positive = 128
    """Samples an optimizer step, over all workers: fixed whatever the number of workers."""
    micro_batch: Positive = 32
    """The most samples a worker pushes through the network at once; accumulation is derived from it."""
    engine: Literal["torch", "zero1", "zero2", "zero3"] = "torch"
    """Plain torch (DDP), or DeepSpeed with its ZeRO stage."""
    offload: Literal["none", "cpu"] = "none"
    """Where DeepSpeed keeps the optimizer's state."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward; weights stay float32. fp16 needs a GPU."""
    clip_norm: PositiveFloat | None = None
    """Upper bound of the gradient's global L2 norm."""
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ConstantSchedule()
    ema_decay: Annotated[float, Field(gt=0, lt=1), Number] | None = None
    """Keep an exponential moving average of the weights, validate and export that."""
    early_stopping: EarlyStopping | None = None

    @property
    def length(self) -> Duration:
        """The length of the run."""
        if self.steps is not None:
            return Duration(amount=self.steps, unit="steps")
        if self.samples is not None:
            return Duration(amount=self.samples, unit="samples")
        return Duration(amount=self.epochs or 0, unit="epochs")

    @model_validator(mode="after")
    def _check(self) -> TrainingSection:
        given = [name for name in ("epochs", "steps", "samples") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            drop = f"; add --set training.{given[0]}=null to drop one" if given else ""
            raise ValueError(f"give exactly one of epochs, steps and samples (found {found}){drop}")
        if self.offload != "none" and self.engine == "torch":
            raise ValueError("offload needs DeepSpeed; set engine to zero1, zero2 or zero3, or offload to none")
        if self.precision == "fp16" and self.engine != "torch":
            raise ValueError("fp16 with DeepSpeed loses its loss scale in a resume; set precision to bf16, or engine to torch")
        if self.engine == "zero3" and self.ema_decay is not None:
            raise ValueError("ema_decay needs whole weights on every worker; set engine to zero1 or zero2, or ema_decay to null")
        if self.micro_batch > self.global_batch:
            raise ValueError(f"micro_batch {self.micro_batch} exceeds global_batch {self.global_batch}; lower micro_batch")
        if isinstance(self.schedule, OneCycleSchedule) and self.optimizer.lr > self.schedule.max_lr:
            raise ValueError("schedule.max_lr is below optimizer.lr; raise max_lr (its usual value is 3 x lr)")
        return self


class ValidationSection(Section):
    """When the model is measured on held-out data."""

    every: Duration = duration("1 epoch")
    """Distance between validations; the last step always validates."""
    batch: Positive | None = None
    """Samples a worker and forward pass; left out, twice the micro-batch."""


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class CheckpointSection(Section):
    """What is saved, and what is kept."""

    every: Duration = duration("1 epoch")
    """Distance between saves; the last step always saves."""
    keep_latest: Positive = 2
    """How many of the newest checkpoints stay (ephemeral)."""
    keep_best: Annotated[int, Field(ge=0), Number] = 2
    """How many of the best by the workload's goal metric stay (permanent)."""
    keep_every: Duration | None = None
    """Keep one for good every so often."""
    ephemeral: Annotated[Literal["auto", "off"], BeforeValidator(_off)] = "auto"
    """Saves between those of `every`, as often as their measured cost and the losses so far make best (Young/Daly)."""
    ephemeral_min_s: PositiveFloat = 30.0
    """The shortest distance between ephemeral saves."""
    ephemeral_max_s: PositiveFloat = 3600.0
    """The longest distance between ephemeral saves."""

    @model_validator(mode="after")
    def _bounds(self) -> CheckpointSection:
        if self.ephemeral_min_s > self.ephemeral_max_s:
            raise ValueError("ephemeral_min_s is above ephemeral_max_s; lower it")
        return self


class ScalingSection(Section):
    """What the run asks of the Ray cluster."""

    workers: Positive | tuple[Positive, Positive] = 1
    """Training processes, one a GPU; `[least, most]` lets the run shrink and grow with the cluster."""
    gpu: Literal[True, False, "auto"] = "auto"
    """One GPU a worker; auto takes them where the cluster has (or may grow to) enough for all workers."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPU cores reserved a worker; also its intra-op threads."""

    @property
    def least(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The most workers that the run uses."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while the run goes."""
        return not isinstance(self.workers, int)

    @model_validator(mode="after")
    def _check(self) -> ScalingSection:
        if self.least > self.most:
            raise ValueError(f"workers [{self.least}, {self.most}]: the least comes first; swap them")
        return self


Budget = Annotated[int, Field(ge=-1), Number]


class RetryBudgets(Section):
    """How many restarts each class of failure may cost; -1 for any number, 0 for none."""

    preemption: Budget = -1
    """Nodes taken away with a notice."""
    capacity: Budget = -1
    """Workers that could not be placed in time."""
    lost: Budget = 10
    """Workers or nodes that died without a notice."""
    hang: Budget = 5
    """Groups that made no progress for `hang_s`."""
    memory: Budget = 4
    """Out of memory; each restart halves the micro-batch."""


class ResilienceSection(Section):
    """What a long run survives, and how often."""

    hang_s: PositiveFloat = 600.0
    """A rank without progress for so long is ended, its stacks saved, and the group restarted."""
    spike_sigma: PositiveFloat = 6.0
    """A loss this many standard deviations above its recent mean rolls the run back; NaN and infinity always do."""
    max_rollbacks: Annotated[int, Field(ge=0), Number] = 8
    """How many rollbacks before the remedies (gradient norm, learning rate), and then the end."""
    preflight: bool = True
    """One step at the largest shape before the first, so that memory runs out on the first minute and not on day nine."""
    poll_s: PositiveFloat = 2.0
    """Distance between looks at stop requests, preemption notices and finished saves."""
    budgets: RetryBudgets = RetryBudgets()


class TrackingSection(Section):
    """Experiment trackers that get a copy of the metrics; the run directory always has them all."""

    trackers: tuple[Literal["wandb", "mlflow", "tensorboard"], ...] = ()
    """wandb runs offline without a key; mlflow without MLFLOW_TRACKING_URI and tensorboard write into the run directory."""
    project: str = "longhaul"
    """wandb project, MLflow experiment."""
    log_every: Duration = duration("10 steps")
    """Distance between logged training losses."""


class ExportSection(Section):
    """What `longhaul export` makes of the best checkpoint."""

    model_name: RunName | None = None
    """Name in the registry; left out, the recipe's name."""
    opset: Annotated[int, Field(ge=18, le=23), Number] = 18
    """ONNX operator set."""
    max_batch: Positive = 8
    """The largest batch that the exported model takes; its batch dimension is dynamic from 1 to here."""
    batches: tuple[Positive, ...] = ()
    """Batch sizes to write a graph of fixed shapes for, one file each; left out, one graph takes any batch up to max_batch."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Arithmetic of the exported graph; detectors keep boxes, scores and suppression in float32 whatever it is."""


class GateSection(Section):
    """What a phase must have reached for the run to go on."""

    metric: str
    """Such as `val/top1`; its best value in the phase counts."""
    at_least: float | None = None
    """Exactly one of at_least and at_most."""
    at_most: float | None = None
    """For metrics where less is better."""

    @model_validator(mode="after")
    def _one_bound(self) -> GateSection:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least and at_most")
        return self

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_least is None else f"at least {self.at_least:g}"
        return f"{self.metric} {bound}"


class PhaseSection(Section):
    """A stretch of the run with settings of its own; optimizer and schedule start afresh in each."""

    name: RunName
    """Names the phase in events and errors."""
    set: dict[str, Any] = {}
    """Fields on top of the rest of the recipe, such as `data.resolution: 16`: of data, training, validation, checkpoints."""
    carry: Literal["best", "latest"] = "best"
    """Which weights of the phase before this one begins with."""
    gate: GateSection | None = None
    """What must be reached at its end."""

    @field_validator("set", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        return flat(value) if isinstance(value, dict) else value


class Recipe(Section):
    """One run, completely described."""

    name: RunName
    """Names the recipe, and the run unless `--name` says otherwise."""
    seed: Annotated[int, Field(ge=0, lt=2**31), Number] = 0
    """Decides initial weights, the order of samples, augmentation and dropout."""
    workload: ProblemSection = ClassificationSection()
    model: NetworkSection
    data: DataSection
    training: TrainingSection
    validation: ValidationSection = ValidationSection()
    checkpoints: CheckpointSection = CheckpointSection()
    scaling: ScalingSection = ScalingSection()
    resilience: ResilienceSection = ResilienceSection()
    tracking: TrackingSection = TrackingSection()
    export: ExportSection = ExportSection()
    phases: tuple[PhaseSection, ...] = ()
    """Stretches of the run one after another; left out, it is one."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        batch, scaling = self.training.global_batch, self.scaling
        if not any(batch % workers == 0 for workers in range(scaling.least, scaling.most + 1)):
            divisors = [w for w in range(1, batch + 1) if batch % w == 0]
            raise ValueError(
                f"training.global_batch {batch} cannot be shared evenly by scaling.workers "
                f"{scaling.workers}; set workers to one of {', '.join(map(str, divisors[:12]))}"
            )
        self._check_problem()
        if self.training.precision == "fp16" and self.scaling.gpu is False:
            raise ValueError("training.precision fp16 needs a GPU; set precision to bf16 or fp32, or scaling.gpu to auto")
        return self

    def _check_problem(self) -> None:
        """Workload, network and data belong together."""
        detects = self.workload.kind == "detection"
        if detects != isinstance(self.model, DetectorSection):
            fix = "fasterrcnn_resnet18_fpn or fasterrcnn_resnet50_fpn" if detects else "an image network such as resnet18"
            raise ValueError(f"workload {self.workload.kind} cannot train model.name {self.model.name!r}; set it to {fix}")
        if detects != (self.data.kind == "spectrograms"):
            fix = "spectrograms" if detects else "imagefolder, digits or cifar10"
            raise ValueError(f"workload {self.workload.kind} cannot read data.kind {self.data.kind}; set it to {fix}")
        if detects and not self.export.batches:
            raise ValueError("a detector is exported with fixed shapes; set export.batches, for example to [1, 4, 8]")

    @property
    def sha256(self) -> str:
        """Hash of the resolved recipe, the same wherever and whenever it is computed."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

"""What a recipe says of the network: a classifier or a detector, by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from longhaul.recipe.section import Number, Positive, PositiveFloat, Section, Share

DetectorName = Literal["fasterrcnn_resnet18_fpn", "fasterrcnn_resnet34_fpn", "fasterrcnn_resnet50_fpn"]
Ratio = Annotated[float, Field(gt=0, lt=1), Number]


class _Network(Section):
    pretrained: bool = False
    """Start from published ImageNet weights (downloads them once)."""
    weights: str | None = None
    """Start from a local `.pt` or `.safetensors` file; layers of another shape (the head) start fresh."""

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> _Network:
        if self.pretrained and self.weights:
            raise ValueError("pretrained and weights contradict each other; remove one of them")
        return self


class ModelSection(_Network):
    """An image classifier."""

    name: str
    """A name that `longhaul recipe models` lists: any timm model, such as `resnet18`, or `simple_cnn` or `tiny_cnn`."""
    drop_rate: Share = 0.0
    """Dropout before the head."""
    drop_path_rate: Share = 0.0
    """Stochastic depth, for models that have it."""


class DetectorSection(_Network):
    """Faster R-CNN with a feature pyramid (FPN), built from torchvision's parts."""

    name: DetectorName
    """The backbone; `pretrained` is the backbone's."""
    norm: Literal["batch", "frozen"] = "batch"
    """Batch norm that learns, or one whose statistics stay those of the loaded weights (for micro-batches of one or two)."""
    mean: Annotated[float, Field(ge=0, le=1), Number] = 0.45
    """Subtracted from the tile's grey levels (0..1); one number, so that the three equal channels fold into one at export."""
    std: PositiveFloat = 0.225
    """What they are divided by after that."""
    stages: Annotated[tuple[Annotated[int, Field(ge=1, le=4), Number], ...], Field(min_length=2)] = (1, 2, 3, 4)
    """Stages of the ResNet that feed the pyramid. Without 1 (stride 4) it takes half the work and misses the smallest signals."""
    fpn_channels: Positive = 256
    """Width of the pyramid."""
    head_width: Positive = 1024
    """Width of the two layers that classify a proposal."""
    anchor_px: PositiveFloat = 32.0
    """Side of the anchors on the finest level; twice that on each level above it."""
    aspect_ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    candidates: Annotated[int, Field(gt=0, le=3840), Number] = 1000
    """Anchors a level that enter the first non-maximum suppression; twice as many in training. TensorRT sorts 3840 at most."""
    proposals: Positive = 300
    """Proposals a tile that are classified; twice as many in training."""
    anchor_samples: Positive = 256
    """Anchors a tile that the first stage's loss is taken over."""
    proposal_samples: Positive = 256
    """Proposals a tile that the second stage's loss is taken over."""
    least_score: Annotated[float, Field(ge=0, lt=1), Number] = 0.05
    """Detections below this are not given at all."""
    nms_iou: Ratio = 0.5
    """Of two detections of one class that overlap by more, only the better one is given."""
    max_detections: Positive = 100
    """Detections a tile."""

    @model_validator(mode="after")
    def _stages_in_a_row(self) -> DetectorSection:
        first, last = self.stages[0], self.stages[-1]
        if list(self.stages) != list(range(first, last + 1)):
            raise ValueError(f"stages {list(self.stages)} do not follow each other; write for example [2, 3, 4]")
        return self


def _kind(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "[detector]" if str(name).startswith("fasterrcnn") else "[classifier]"


NetworkSection = Annotated[
    Annotated[ModelSection, Tag("[classifier]")] | Annotated[DetectorSection, Tag("[detector]")], Discriminator(_kind)
]

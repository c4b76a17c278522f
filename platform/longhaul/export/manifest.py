"""What the registry says of a model: the manifest of one version, and the records that make it up."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longhaul.errors import IntegrityError
from longhaul.storage import FileRecord
from longhaul.workloads.base import Precision, Signature

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_SEAL = "sha256"


def batch_file(batch: int) -> str:
    """The ONNX file of a model that takes exactly this batch: `model.b4.onnx`."""
    return f"model.b{batch}.onnx"


class _Record(BaseModel):
    # A broken model can give an infinite difference or a metric that is NaN; strict JSON has no word for either.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class BoundsRecord(_Record):
    """What detections of an exported model may differ by, and still pass.

    Attributes:
        least_matched: share of detections that must have a partner, 0..1.
        box_max_px, box_p99_px: largest difference of a partner's coordinates, and the one that 99 % stay below; None: any.
        score_max: largest difference of a partner's score; None: any.
        map_drop: how far mean average precision may fall, 0..1.
    """

    least_matched: float
    box_max_px: float | None
    box_p99_px: float | None
    score_max: float | None
    map_drop: float


class ThresholdRecord(_Record):
    """Detections above one score, of the torch model and of the exported one, on the same tiles.

    A tile that ran at several batch sizes counts once for each.

    Attributes:
        threshold: the score.
        reference, exported: detections by the torch model and by the exported one.
        matched: pairs, one to one, with the same label and an IoU of at least 0.9.
        at_edge: detections without a partner whose score is within 1e-4 of the threshold; they count as no difference.
        differing_tiles: tiles on which a detection has no partner.
        box_max_px, box_p99_px, score_max: differences between partners; 0 where there are none.
        passed: within the bounds.
    """

    threshold: float
    reference: int
    exported: int
    matched: int
    at_edge: int
    differing_tiles: int
    box_max_px: float
    box_p99_px: float
    score_max: float
    passed: bool

    @property
    def matched_share(self) -> float:
        """Pairs over pairs and those without a partner on either side, but at the edge; 1 where there is nothing to pair."""
        unmatched = self.reference + self.exported - 2 * self.matched - self.at_edge
        return self.matched / (self.matched + unmatched) if self.matched + unmatched else 1.0

    def __str__(self) -> str:
        """`score > 0.5: 91 by torch, 91 exported, 91 paired; boxes within 7.6e-05 px (99 %: 7.0e-05), scores within 4.7e-06`."""
        edge = f", {self.at_edge} at the threshold's edge" if self.at_edge else ""
        counts = f"{self.reference} by torch, {self.exported} exported, {self.matched} paired{edge}"
        boxes = f"boxes within {self.box_max_px:.1e} px (99 %: {self.box_p99_px:.1e})"
        return f"score > {self.threshold:g}: {counts}; {boxes}, scores within {self.score_max:.1e}"


class RuntimeRecord(_Record):
    """One runtime's detections against the torch model's.

    Attributes:
        runtime: what ran the exported model.
        batch_sizes: the batch sizes that were run.
        thresholds: by score.
        torch_map, map: mean average precision on the test split, by both models.
        unsettled_tiles: tiles whose `flag` says that a suppression may not be exact.
        passed: all thresholds passed, at least one detection was compared, and `map` fell by no more than allowed.
    """

    runtime: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    batch_sizes: tuple[int, ...]
    thresholds: tuple[ThresholdRecord, ...]
    torch_map: float
    map: float
    unsettled_tiles: int
    passed: bool


class DecisionsRecord(_Record):
    """Does the exported detector decide as the torch model does?

    Attributes:
        precision: arithmetic of the exported graph.
        bounds: what was allowed.
        tiles: whose detections were paired: the test split, and of the validation split as many as make a hundred.
        rpn_iterations, detection_iterations: rounds that the suppressions need on `iteration_tiles` tiles of the test split.
        runtimes: ONNX Runtime first, then engine plans where they run on the machine of the export.
    """

    precision: Precision
    bounds: BoundsRecord
    tiles: int
    rpn_iterations: int
    detection_iterations: int
    iteration_tiles: int
    runtimes: tuple[RuntimeRecord, ...]

    @property
    def passed(self) -> bool:
        """All runtimes passed."""
        return all(runtime.passed for runtime in self.runtimes)


class ParityRecord(_Record):
    """How the ONNX model, run by ONNX Runtime, compares with the torch model in float32 on the test split.

    For detectors the differences are those of the coordinates, in pixels, between detections that both models give, and
    `decisions` says what passing means.

    Attributes:
        samples: how many of the test split were compared.
        batch_sizes: the batch sizes that were run.
        max_abs_difference, mean_abs_difference: over all output elements; infinite where either model is not finite.
        top1_agreement: share of samples with the same largest class, 0..1; None for tasks without classes.
        metric: the workload's goal metric, with its value by both models.
        tolerance: the largest `max_abs_difference` that passes: a fixed share of the largest output, at least of 1.
        passed: within the tolerance, and the classes agree; for detectors, the decisions passed in every runtime.
        decisions: of detectors; None for other tasks.
    """

    samples: int
    batch_sizes: tuple[int, ...]
    max_abs_difference: float
    mean_abs_difference: float
    top1_agreement: float | None
    metric: str
    torch_metric: float
    onnx_metric: float
    tolerance: float
    passed: bool
    decisions: DecisionsRecord | None = None

    @property
    def findings(self) -> list[str]:
        """What was found, a line each; the verdict first."""
        outcome = "passed" if self.passed else "FAILED"
        if self.decisions is None:
            return [f"parity {outcome}: largest difference {self.max_abs_difference:.2e} over {self.samples} test samples"]
        lines = [f"parity {outcome}: {self.decisions.precision} against torch in float32 over {self.decisions.tiles} tiles"]
        for runtime in self.decisions.runtimes:
            lines += [f"{runtime.runtime}, {found}" for found in runtime.thresholds]
            lines.append(f"{runtime.runtime}, mean average precision {runtime.map:.4f} (torch {runtime.torch_map:.4f})")
        return lines


class PlanRecord(_Record):
    """An engine plan beside the ONNX model.

    Attributes:
        file: its name in the version's folder.
        builder: the module that built it; a plan loads only in the same one.
        builder_version: a plan loads only in the version that built it.
        device: the GPU's name that it was built for, or `any` (RTX builders compile the last step on the user's card).
        batch: the one batch size that it takes; None for any from 1 to the model's largest.
        precision: arithmetic of the graph that it was built from.
    """

    file: FileName
    builder: Literal["tensorrt", "tensorrt_rtx"]
    builder_version: str
    device: str
    batch: int | None = None
    precision: Precision = "fp32"


class Description(_Record):
    """What whoever publishes a model says of it; the registry adds the rest (`Manifest`).

    Attributes:
        name: the model's name in the registry.
        signature: inputs, outputs, classes, preprocessing.
        max_batch: the largest batch that the model takes; the smallest is 1.
        batches: batch sizes of which each has an ONNX file of its own, rising; empty where one file takes them all.
        metrics: scalars of the ONNX model on the test split, such as `top1`.
        parity: comparison with the torch model.
        recipe_sha256: `Recipe.sha256` of the run.
        run, checkpoint, step: where the weights come from.
        plans: engine plans among the files.
    """

    name: ModelName
    signature: Signature
    max_batch: Annotated[int, Field(gt=0)]
    batches: tuple[int, ...] = ()
    metrics: dict[str, float]
    parity: ParityRecord
    recipe_sha256: Sha256
    run: str
    checkpoint: str
    step: int
    plans: tuple[PlanRecord, ...] = ()

    @property
    def model_files(self) -> dict[int | None, str]:
        """Batch size -> ONNX file, rising; the only key is None where one file takes any batch."""
        return {batch: batch_file(batch) for batch in self.batches} or {None: MODEL_FILE}

    def model_file(self, samples: int) -> str:
        """The ONNX file for so many samples at once: the one of the smallest batch that holds them.

        Raises:
            ValueError: more than `max_batch`.
        """
        if samples > self.max_batch:
            raise ValueError(f"{self.name} takes at most {self.max_batch} samples, not {samples}")
        return next((batch_file(batch) for batch in self.batches if batch >= samples), MODEL_FILE)


class Manifest(Description):
    """One version of a model, complete.

    Attributes:
        version: `1`, `2`, ...
        created_s: seconds since 1970.
        files: every file of the version but the manifest itself, by name.
    """

    schema_version: Literal[1] = 1
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    created_s: float
    files: dict[FileName, FileRecord]

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(record.bytes for record in self.files.values())

    def encode(self) -> bytes:
        """JSON, sealed: its member `sha256` is the hash of all others, so that a changed manifest does not decode."""
        members = json.loads(self.model_dump_json())
        return _written(members | {_SEAL: _hash(members)})

    @classmethod
    def decode(cls, data: bytes, source: str) -> Manifest:
        """The manifest in `data`, which was read from `source`.

        Raises:
            IntegrityError: cut short, changed since it was written, or of another schema.
        """
        try:
            members = json.loads(data)
        except ValueError:
            raise IntegrityError(f"{source}: is not JSON, so it was cut short or changed. Publish the model again") from None
        if not isinstance(members, dict) or _written(members) != data or members.pop(_SEAL, None) != _hash(members):
            raise IntegrityError(f"{source}: is not what was written (its own SHA-256 differs). Publish the model again")
        try:
            return cls.model_validate(members)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise IntegrityError(f"{source}: field {field}: {first['msg']}. It was written by another version") from None


def _written(members: dict[str, Any]) -> bytes:
    """The one way to write it, so that not even a blank can change unseen."""
    return (json.dumps(members, indent=1) + "\n").encode()


def _hash(members: object) -> str:
    return hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

"""What the registry says of a model: the manifest of one version, and the records that make it up."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longhaul.errors import IntegrityError
from longhaul.storage import FileRecord
from longhaul.workloads.base import Signature

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_SEAL = "sha256"


class _Record(BaseModel):
    # A broken model can give an infinite difference or a metric that is NaN; strict JSON has no word for either.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ParityRecord(_Record):
    """How the ONNX model, run by ONNX Runtime, compares with the torch model in float32 on the test split.

    Attributes:
        samples: how many of the test split were compared.
        batch_sizes: the batch sizes that were run.
        max_abs_difference, mean_abs_difference: over all output elements; infinite where either model is not finite.
        top1_agreement: share of samples with the same largest class, 0..1; None for tasks without classes.
        metric: the workload's goal metric, with its value by both models.
        tolerance: the largest `max_abs_difference` that passes: a fixed share of the largest output, at least of 1.
        passed: within the tolerance, and the classes agree.
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


class PlanRecord(_Record):
    """An engine plan beside the ONNX model.

    Attributes:
        file: its name in the version's folder.
        builder: the module that built it; a plan loads only in the same one.
        builder_version: a plan loads only in the version that built it.
        device: the GPU's name that it was built for, or `any` (RTX builders compile the last step on the user's card).
    """

    file: FileName
    builder: Literal["tensorrt", "tensorrt_rtx"]
    builder_version: str
    device: str


class Description(_Record):
    """What whoever publishes a model says of it; the registry adds the rest (`Manifest`).

    Attributes:
        name: the model's name in the registry.
        signature: inputs, outputs, classes, preprocessing.
        max_batch: the largest batch that the model takes; the smallest is 1.
        metrics: scalars of the ONNX model on the test split, such as `top1`.
        parity: comparison with the torch model.
        recipe_sha256: `Recipe.sha256` of the run.
        run, checkpoint, step: where the weights come from.
        plans: engine plans among the files.
    """

    name: ModelName
    signature: Signature
    max_batch: Annotated[int, Field(gt=0)]
    metrics: dict[str, float]
    parity: ParityRecord
    recipe_sha256: Sha256
    run: str
    checkpoint: str
    step: int
    plans: tuple[PlanRecord, ...] = ()


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

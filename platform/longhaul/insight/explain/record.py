"""What is kept of an explanation, with the run that it explains.

<run>/explanation.json            `Explanation`; written last, it has the SHA-256 of the maps
<run>/explanation.npz             `Kept`: maps on the common grid, and images and maps as they are shown
<run>/pictures/explain.png        the images beside all methods
<run>/pictures/explain_<method>.png
"""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.errors import IntegrityError, UserError
from longhaul.insight.explain.attribution import Floats, Method
from longhaul.insight.explain.sanity import SanityCheck
from longhaul.resilience.run_directory import RunDirectory

log = logging.getLogger(__name__)

_FILE, _MAPS, _PICTURES = "explanation.json", "explanation.npz", "pictures"


class ExplainedImage(BaseModel):
    """One image.

    Attributes:
        id: of the sample, or the file's name.
        label: the true class; None where it is not known.
        target: the class that the maps explain.
        answer, probability: what the model says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    label: int | None
    target: int
    answer: int
    probability: float


class MethodReport(BaseModel):
    """What became of one method.

    Attributes:
        problem: why the method could not be used on this network; the rest is then empty.
        layer, side: what Grad-CAM looked at, and its cells along a side; of one that could not be used, what it was to look at.
        empty: maps without any variation; for Grad-CAM, nothing in the layer speaks for the class.
        incomplete, worst_error, most_steps: of integrated gradients: how many maps miss completeness by more than the
            tolerance, the worst relative error, the most points on a path.
        sanity: whether the maps depend on the model's weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    method: Method
    problem: str | None = None
    layer: str | None = None
    side: int | None = None
    empty: int = 0
    incomplete: int = 0
    worst_error: float | None = None
    most_steps: int | None = None
    sanity: SanityCheck | None = None


class Explanation(BaseModel):
    """`explanation.json`: what a run's best model looks at.

    Attributes:
        run, model, resolution: which; the resolution in pixels.
        checkpoint: whose weights these are.
        data: fingerprint of the test split.
        seed: of the choice of images, and of the random weights of the sanity check.
        grid: cells along a side of the common grid.
        maps_sha256: of `explanation.npz`, once it is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    run: str
    model: str
    resolution: int
    checkpoint: str
    data: str
    seed: int
    grid: int
    classes: tuple[str, ...]
    images: tuple[ExplainedImage, ...]
    methods: tuple[MethodReport, ...]
    maps_sha256: str = ""

    @property
    def usable(self) -> list[Method]:
        """The methods that gave maps."""
        return [report.method for report in self.methods if report.problem is None]

    @property
    def looked_at(self) -> tuple[str, int] | None:
        """The layer of Grad-CAM and its cells along a side; None where it gave no maps."""
        for one in self.methods:
            if one.method == "gradcam" and one.problem is None and one.layer is not None and one.side is not None:
                return one.layer, one.side
        return None


@dataclass(frozen=True)
class Kept:
    """`explanation.npz`.

    Attributes:
        images: (N, S, S, 3) uint8 as the network saw them, S at most `SHOWN_PX`.
        grid: by method, (N, GRID, GRID) float32: strength on the common grid.
        shown: by method, (N, S, S) float16: the maps, signed where the method is.
    """

    images: npt.NDArray[np.uint8]
    grid: dict[Method, Floats] = field(default_factory=dict)
    shown: dict[Method, npt.NDArray[np.float16]] = field(default_factory=dict)


def save(run: RunDirectory, explanation: Explanation, kept: Kept, pictures: Mapping[str, bytes]) -> Explanation:
    """Write all of it into the run in place of a former one; `pictures` are PNG by file name. Returns what is in the file."""
    arrays: dict[str, npt.NDArray[Any]] = {"images": kept.images}
    arrays |= {f"grid/{method}": maps for method, maps in kept.grid.items()}
    arrays |= {f"shown/{method}": maps for method, maps in kept.shown.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    stamped = explanation.model_copy(update={"maps_sha256": hashlib.sha256(buffer.getvalue()).hexdigest()})
    run.storage.write_bytes(_MAPS, buffer.getvalue())
    for entry in run.storage.list(_PICTURES):
        if entry.name.startswith("explain") and entry.name.endswith(".png") and entry.name not in pictures:
            run.storage.delete_file(f"{_PICTURES}/{entry.name}")  # of a method that is no longer there
    for name, picture in pictures.items():
        run.write_picture(name, picture)
    run.storage.write_bytes(_FILE, (stamped.model_dump_json(indent=1) + "\n").encode())  # last: it vouches for the rest
    return stamped


def load_explanation(run: RunDirectory) -> Explanation | None:
    """What `explain_run` kept with the run; None where there is none, or one of another version."""
    try:
        return Explanation.model_validate_json(run.storage.read_bytes(_FILE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s/%s is passed over: %s", run.uri, _FILE, error.errors()[0]["msg"])
        return None


def load_kept(run: RunDirectory) -> Kept:
    """The maps that `explain_run` kept with the run.

    Raises:
        UserError: there are none.
        IntegrityError: they are damaged, or not those that `explanation.json` speaks of.
    """
    explanation = load_explanation(run)
    try:
        data = run.storage.read_bytes(_MAPS)
    except FileNotFoundError:
        explanation = None
    if explanation is None:
        raise UserError(f"run {run.name}: is not explained yet", f"Explain it: longhaul explain {run.uri}")
    try:
        if hashlib.sha256(data).hexdigest() != explanation.maps_sha256:
            raise ValueError(f"its SHA-256 is not the one in {_FILE}")
        kept = _unpacked(data, explanation.usable)
        _check_shapes(kept, explanation)
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(f"{run.uri}/{_MAPS}: {error}; explain the run again: longhaul explain {run.uri}") from None
    return kept


def _unpacked(data: bytes, methods: Sequence[Method]) -> Kept:
    with np.load(io.BytesIO(data)) as arrays:
        grid = {method: arrays[f"grid/{method}"] for method in methods}
        return Kept(arrays["images"], grid, {method: arrays[f"shown/{method}"] for method in methods})


def _check_shapes(kept: Kept, explanation: Explanation) -> None:
    """Raises ValueError where an array is not as the explanation has it."""
    count, cells = len(explanation.images), explanation.grid
    side = kept.images.shape[1] if kept.images.ndim == 4 else 0
    wanted: dict[str, tuple[npt.NDArray[Any], tuple[int, ...]]] = {"images": (kept.images, (count, side, side, 3))}
    wanted |= {f"grid/{method}": (maps, (count, cells, cells)) for method, maps in kept.grid.items()}
    wanted |= {f"shown/{method}": (maps, (count, side, side)) for method, maps in kept.shown.items()}
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"{name} is of shape {array.shape}, not {shape}")

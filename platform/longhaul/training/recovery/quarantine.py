"""The quarantine report: which samples a run leaves out, since when and why, with thumbnails.

    quarantine.json            every sample (`Quarantine`), the oldest first
    quarantine/3f9a....png     thumbnails, by the hash of the sample's id
    pictures/quarantine.png    the newest ones on a sheet, which `longhaul runs show` lists

It is drawn by the rank that has the data, right after an exclusion; nothing that goes wrong with it stops the run.
"""

from __future__ import annotations

import hashlib
import io
import logging
import textwrap
import time
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, ConfigDict

from longhaul.data.samples import SampleSet
from longhaul.resilience.divergence import Suspect
from longhaul.resilience.run_directory import RunDirectory

log = logging.getLogger(__name__)

FILE = "quarantine.json"
_THUMBNAIL, _MOST_THUMBNAILS = 128, 48
_COLUMNS, _CELL_WIDTH, _CELL_HEIGHT, _MARGIN, _HEAD = 6, 176, 236, 16, 56
_TEXT, _GREY, _RED = (30, 30, 30), (120, 120, 120), (176, 32, 32)


class Quarantined(BaseModel):
    """A sample that is left out.

    Attributes:
        id: its name in the training set, as `data.excluded` takes it.
        step, segment: before which step of which line of history.
        reason: why, in a few words.
        loss: alone, where it was tried; else None.
        spike: what made the run look.
        thumbnail: file below the run, where the sample can be shown.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    id: str
    step: int
    segment: int
    reason: str
    loss: float | None
    spike: str
    time_s: float
    thumbnail: str | None = None


class Quarantine(BaseModel):
    """`quarantine.json`."""

    model_config = ConfigDict(extra="forbid")

    samples: list[Quarantined] = []


def quarantined(run: RunDirectory) -> Quarantine:
    """What the run leaves out so far."""
    try:
        return Quarantine.model_validate_json(run.storage.read_bytes(FILE))
    except FileNotFoundError:
        return Quarantine()


def add_to_report(run: RunDirectory, samples: SampleSet, found: Sequence[Suspect], spike: str, step: int, segment: int) -> None:
    """Add the samples `found` before `step` to the run's report; one process a run.

    Args:
        run: whose report.
        samples: that the suspects' indices count in; where it has a method `open(index)` that gives a picture, it is shown.
        found: who is left out from now on.
        spike: what made the run look.
        step: see `Quarantined`.
        segment: see `Quarantined`.
    """
    try:
        report = quarantined(run)
        names = {samples.ids[one.index] for one in found}  # a crash may have come between an exclusion and its checkpoint
        report.samples = [one for one in report.samples if one.id not in names]
        for place, one in enumerate(found):
            name = f"quarantine/{hashlib.sha256(samples.ids[one.index].encode()).hexdigest()[:16]}.png"
            shown = place < _MOST_THUMBNAILS and _write_thumbnail(run, samples, one.index, name)
            report.samples.append(
                Quarantined(
                    id=samples.ids[one.index], step=step, segment=segment, reason=one.reason, loss=one.loss,
                    spike=spike, time_s=time.time(), thumbnail=name if shown else None,
                )
            )  # fmt: skip
        run.storage.write_bytes(FILE, (report.model_dump_json(indent=1) + "\n").encode())
        run.write_picture("quarantine.png", draw(run, report))
    except Exception:  # a picture that cannot be drawn must not end the run
        log.exception("the quarantine report could not be written; the samples are left out all the same")


def draw(run: RunDirectory, report: Quarantine) -> bytes:
    """The newest samples as a PNG, six a row: picture, id, step, reason."""
    newest = report.samples[-_MOST_THUMBNAILS:]
    rows = -(-len(newest) // _COLUMNS)
    columns = min(len(newest), _COLUMNS)
    size = (max(columns, 3) * _CELL_WIDTH + _MARGIN, _HEAD + rows * _CELL_HEIGHT + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    left = len(report.samples) - len(newest)
    more = f", the newest {len(newest)} shown" if left else ""
    count = f"{len(report.samples)} sample{'s' if len(report.samples) > 1 else ''}"
    title = textwrap.shorten(f"{run.name}: {count} left out{more}", size[0] // 9, placeholder="...")
    pen.text((_MARGIN, 18), title, fill=_TEXT, font=ImageFont.load_default(17))
    for place, one in enumerate(newest):
        row, column = divmod(place, _COLUMNS)
        _draw_cell(run, sheet, pen, one, (_MARGIN + column * _CELL_WIDTH, _HEAD + row * _CELL_HEIGHT))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _draw_cell(run: RunDirectory, sheet: Image.Image, pen: ImageDraw.ImageDraw, one: Quarantined, at: tuple[int, int]) -> None:
    left, top = at
    frame = (left, top, left + _THUMBNAIL, top + _THUMBNAIL)
    if one.thumbnail is None:
        pen.rectangle(frame, fill=(240, 240, 240))
        pen.text((left + 36, top + 56), "no picture", fill=_GREY, font=ImageFont.load_default(11))
    else:
        with Image.open(io.BytesIO(run.storage.read_bytes(one.thumbnail))) as picture:
            sheet.paste(picture.convert("RGB"), (left, top))
    pen.rectangle(frame, outline=(200, 200, 200))
    width = 26
    name = one.id if len(one.id) <= width else f"...{one.id[-width + 3 :]}"
    lines = [(name, _TEXT), (f"step {one.step}", _GREY)]
    lines += [(line, _RED) for line in textwrap.wrap(one.reason, width, max_lines=3, placeholder=" ...")]
    for number, (line, colour) in enumerate(lines):
        pen.text((left, top + _THUMBNAIL + 8 + number * 17), line, fill=colour, font=ImageFont.load_default(12))


def _write_thumbnail(run: RunDirectory, samples: SampleSet, index: int, name: str) -> bool:
    """Whether the sample can be shown, and was written as a square PNG."""
    opened = getattr(samples, "open", None)
    if opened is None:
        return False
    try:
        picture = opened(index).convert("RGB")
    except Exception as error:  # noqa: BLE001 - the sample is in quarantine: anything may be wrong with it
        log.warning("%s cannot be shown: %s", samples.ids[index], error)
        return False
    scale = _THUMBNAIL / max(picture.size)
    small = tuple(max(round(side * scale), 1) for side in picture.size)
    square = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), (240, 240, 240))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    square.paste(picture.resize(small, how), tuple((_THUMBNAIL - side) // 2 for side in small))
    out = io.BytesIO()
    square.save(out, "PNG")
    run.storage.write_bytes(name, out.getvalue())
    return True

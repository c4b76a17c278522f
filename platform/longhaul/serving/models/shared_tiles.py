"""One spectrogram for all detectors: which tiles it is cut into, and who cannot look at those."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from longhaul.engines.inference import only_input
from longhaul.errors import UserError
from longhaul.serving.models.served import ServedDetector
from longhaul.signals.tile_folder import TileSettings

_FIX = "Train both on the same tiles, or serve them in two applications"


def shared_tiles(detectors: Sequence[ServedDetector], before: TileSettings | None = None) -> TileSettings | None:
    """The tiles that all of these detectors look at: the signal is turned into tiles once for all of them.

    A detector that was trained on pictures of unknown make takes the others' tiles, if they have its size.

    Args:
        detectors: at least one.
        before: how tiles have been made so far; they stay if no detector says anything else.

    Returns:
        None if nobody knows: such detectors answer tiles, and no signals.

    Raises:
        UserError: two differ, names them and in what; or the tiles so far have another size.
    """
    for first, second in itertools.combinations(detectors, 2):
        if difference := _difference(first, second):
            names = f"models {first.manifest.name} and {second.manifest.name}"
            raise UserError(f"{names} cannot share one spectrogram: {difference}", _FIX)
    known = next((detector.tiles for detector in detectors if detector.tiles is not None), before)
    shape = only_input(detectors[0].manifest.signature).shape
    if known is not None and shape != (1, known.front_end.tile, known.front_end.tile):
        side = known.front_end.tile
        raise UserError(f"model {detectors[0].manifest.name}: its input is {shape}, and tiles have {side} x {side} pixels", _FIX)
    return known


def check_candidate(candidate: ServedDetector, detectors: Sequence[ServedDetector], tiles: TileSettings | None) -> None:
    """Refuse a candidate that cannot look at the tiles that production sees.

    Args:
        candidate: to be compared.
        detectors: that answer.
        tiles: how theirs are made.

    Raises:
        UserError: as `shared_tiles`.
    """
    shared_tiles([*detectors, candidate], tiles)
    if tiles is not None and candidate.tiles is not None and (difference := difference_of(tiles, candidate.tiles)):
        raise UserError(f"model {candidate.manifest.name}: its candidate needs other tiles: {difference}", _FIX)


def difference_of(one: TileSettings, other: TileSettings) -> str:
    """What two settings make differently, for people to read; empty if the tiles are the same."""
    if one.chunk_s != other.chunk_s:
        return f"chunks of {one.chunk_s:g} s and {other.chunk_s:g} s"
    first, second = one.front_end.model_dump(), other.front_end.model_dump()
    return "; ".join(f"{name} {value} and {second[name]}" for name, value in first.items() if value != second[name])


def _difference(first: ServedDetector, second: ServedDetector) -> str:
    """What separates the tiles of two detectors; empty if nothing does."""
    shapes = [only_input(detector.manifest.signature).shape for detector in (first, second)]
    if shapes[0] != shapes[1]:
        return f"inputs of {shapes[0]} and {shapes[1]}"
    if first.tiles is None or second.tiles is None:
        return ""
    return difference_of(first.tiles, second.tiles)

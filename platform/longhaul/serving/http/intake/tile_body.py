"""A tile as a body: a PNG in grey, of the very side that the detectors take, looked at before it is decoded."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from longhaul.serving.refusals import BrokenImage, ImageTooLarge


def most_bytes(side: int) -> int:
    """What a PNG of that side may have: its pixels twice over, and something for what else it says."""
    return 2 * side * side + (64 << 10)


def tile_pixels(body: bytes, side: int) -> Tensor:
    """The pixels (side, side) uint8.

    Raises:
        BrokenImage: no PNG, a damaged one, not of that size, or not of 8 bits in grey.
        ImageTooLarge: what is in it unpacks to more than a tile.
    """
    if not body:
        raise BrokenImage("the tile is empty (0 bytes)", "Send the bytes of a PNG file")
    try:
        with Image.open(io.BytesIO(body), formats=("PNG",)) as picture:  # reads the header only
            if picture.size != (side, side):
                raise BrokenImage(
                    f"the tile has {picture.width} x {picture.height} pixels, the detectors take {side} x {side}",
                    "Cut it with the front end that they were trained with, or send the signal",
                )
            if picture.mode != "L":
                raise BrokenImage(f"the tile has pixels of kind {picture.mode}, not 8 bits of grey", "Save it in mode L")
            return torch.from_numpy(np.array(picture))
    except UnidentifiedImageError:
        raise BrokenImage("the tile is no PNG", "Send the bytes of a PNG file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the tile has too many pixels ({error})", "Send a smaller one") from None
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes make decoders raise nearly anything: OSError, struct.error
        reason = str(error)[:100] or type(error).__name__
        raise BrokenImage(f"the tile is broken ({reason})", "Save it as a PNG anew, and send the whole file") from None

"""What a page's sections are made of: a picture or a table, with a title of its own."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from longhaul.insight.sweep_report.tables import Table

_CSS_DPI = 96  # a pixel of CSS


@dataclass(frozen=True)
class Block:
    """One picture (`file` beside the page, `width` x `height` in CSS pixels) or one table, with a title of its own."""

    title: str = ""
    file: str = ""
    alt: str = ""
    caption: str = ""
    width: int = 0
    height: int = 0
    table: Table | None = None


def damage(png: bytes) -> str | None:
    """Why a picture that somebody else has written cannot be shown; None where it is whole."""
    try:
        with Image.open(io.BytesIO(png)) as image:
            image.verify()
    except UnidentifiedImageError:  # its own text names an address in memory
        return "it is no picture" if png else "it is empty"
    except (OSError, SyntaxError, ValueError) as error:  # a SyntaxError is a PNG's broken chunk
        return str(error)
    return None


def picture(file: str, png: bytes, *, title: str = "", alt: str, caption: str = "") -> Block:
    """A picture, as large as it was drawn to be: by the dots per inch that its file tells."""
    with Image.open(io.BytesIO(png)) as image:
        dots = image.info.get("dpi", (_CSS_DPI, _CSS_DPI))
        width, height = (round(side * _CSS_DPI / per_inch) for side, per_inch in zip(image.size, dots, strict=True))
    return Block(title=title, file=file, alt=alt, caption=caption, width=width, height=height)

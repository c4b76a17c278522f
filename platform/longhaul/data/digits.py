"""The 1,797 handwritten digits that scikit-learn carries, written once as PNG files in class folders.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998). 8 x 8 pixels, 17 grey levels.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from longhaul.errors import UserError
from longhaul.storage import cache_folder

_DONE = "complete"
_SPLIT_SEED = 1998  # the split belongs to the data set, not to a run


def default_root() -> Path:
    """`$LONGHAUL_CACHE/digits`, or `~/.cache/longhaul/digits`."""
    return cache_folder("digits")


def write_digits(root: Path) -> Path:
    """Make `root/{train,val,test}/<digit>/<number>.png` (1,149 / 288 / 360 images), unless it is there; returns `root`.

    Several processes may call this at once: each writes beside `root`, and the first to finish moves its copy into place.

    Raises:
        UserError: `root` holds something else, or cannot be written.
    """
    if (root / _DONE).exists():
        return root
    scratch = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-"))
        scratch.chmod(0o755)  # mkdtemp makes it private; a shared cache is for everybody
        _write(scratch)
        scratch.rename(root)
    except OSError as error:
        if not (root / _DONE).exists():  # else somebody was first: a rename onto a folder that is not empty is refused
            problem = f"data.root {root}: the digits cannot be written there ({error.strerror})"
            raise UserError(problem, "Give a folder that is empty or not there yet") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return root


def _write(root: Path) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8)
    numbers = np.arange(len(pixels))
    rest, test = train_test_split(numbers, test_size=360, stratify=digits.target, random_state=_SPLIT_SEED)
    train, val = train_test_split(rest, test_size=288, stratify=digits.target[rest], random_state=_SPLIT_SEED)
    for part, members in (("train", train), ("val", val), ("test", test)):
        for number in members:
            folder = root / part / str(digits.target[number])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(folder / f"{number:04d}.png")
    (root / _DONE).touch()

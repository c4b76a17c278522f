"""Pictures from files, with errors that say whose fault it is: the file's, or the file system's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from longhaul.errors import UserError


def open_picture(path: Path, kind: str, convert: Callable[[Image.Image], Image.Image], fix: str) -> Image.Image:
    """The decoded picture, by `convert`.

    Args:
        path: of the file.
        kind: what it is called in errors, such as `image`.
        convert: to the mode that is wanted.
        fix: what to do about a broken file.

    Raises:
        UserError: the file is missing, cut short or no picture.
        OSError: the file system failed; another try may do.
    """
    try:
        with Image.open(path) as picture:
            return convert(picture)
    except FileNotFoundError:
        raise missing(path, kind) from None
    except MemoryError:
        raise
    except OSError as error:
        if error.errno is not None:  # the file system's error, not the decoder's
            raise
        raise _broken(path, kind, error, fix) from None
    except Exception as error:  # noqa: BLE001 - damaged bytes make decoders raise nearly anything: OSError, struct.error
        raise _broken(path, kind, error, fix) from None


def missing(path: Path, kind: str) -> UserError:
    """The error for a file that was there when its folder was listed."""
    return UserError(f"{kind} {path}: missing", "It was there when the folder was listed; restore it or start a new run")


def _broken(path: Path, kind: str, error: Exception, fix: str) -> UserError:
    reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
    return UserError(f"{kind} {path}: broken ({reason})", fix)

"""Who may ask the server: bearer tokens in a file that holds their SHA-256 and never themselves.

A token is 256 random bits, so a plain SHA-256 of it cannot be guessed back; slow password hashes are for what people think up.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longhaul.errors import UserError

_PREFIX = "lh_"  # tells people, and programs that look for leaked secrets, what it is
_RANDOM_BYTES = 32
_FIX = "Make it with `longhaul token new NAME --file FILE`"


class Scope(StrEnum):
    """What a token allows."""

    PREDICT = "predict"
    """Models, detection, streams, classification."""
    ADMIN = "admin"
    """What changes the server."""


class TokenEntry(BaseModel):
    """What the file says of one token; `name` is for people and the access log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    created: datetime


class TokenFile(BaseModel):
    """All tokens that are valid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[TokenEntry, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [entry.name for entry in self.tokens]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tokens are called {name!r}")
        return self

    @classmethod
    def read(cls, path: Path) -> TokenFile:
        """The file's contents.

        Raises:
            UserError: it cannot be read, or is no token file; the message never quotes what is in it.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"token file {path}: {error.strerror}", _FIX) from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"token file {path}: {where + ': ' if where else ''}{first['msg']}", _FIX) from None

    def write(self, path: Path) -> None:
        """Replace the file in one move; only its owner can read it. A link stays, what it leads to is replaced.

        Whoever read it before in order to change it wants `change` below: two at once would undo each other.

        Raises:
            UserError: the folder cannot be written.
        """
        target = Path(os.path.realpath(path))
        try:
            number, partial = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
            try:
                with os.fdopen(number, "w") as stream:
                    stream.write(self.model_dump_json(indent=1) + "\n")
                    stream.flush()
                    os.fsync(number)  # what was revoked stays revoked when the power fails
                Path(partial).replace(target)
            finally:
                Path(partial).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from None

    @classmethod
    def change(cls, path: Path, changed: Callable[[TokenFile], TokenFile], *, create: bool = False) -> None:
        """Read, change and write the file, one process at a time.

        Args:
            path: of the file.
            changed: gives what shall be in it.
            create: begin with no tokens where there is no file.

        Raises:
            UserError: it cannot be read or written, or is no token file; and what `changed` raises.
        """
        with _alone(path):
            known = cls() if create and not path.exists() else cls.read(path)
            changed(known).write(path)

    def with_entry(self, entry: TokenEntry) -> TokenFile:
        """The file with one token more.

        Raises:
            UserError: the name is taken.
        """
        if any(known.name == entry.name for known in self.tokens):
            raise UserError(f"token {entry.name!r}: there is one of that name", "Revoke it first, or take another name")
        return TokenFile(tokens=(*self.tokens, entry))

    def without(self, name: str) -> TokenFile:
        """The file without the token of that name.

        Raises:
            UserError: there is none.
        """
        if all(entry.name != name for entry in self.tokens):
            known = ", ".join(entry.name for entry in self.tokens) or "none"
            raise UserError(f"token {name!r}: there is none of that name", f"There are: {known}")
        return TokenFile(tokens=tuple(entry for entry in self.tokens if entry.name != name))

    def find(self, secret: str) -> TokenEntry | None:
        """The token's entry; it takes as long whichever entry it is, or none."""
        digest = _digest(secret)
        found: TokenEntry | None = None
        for entry in self.tokens:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found


class TokenWatch:
    """The token file as it is now: read again when it changes, so that a token is revoked without a restart.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, or is no token file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._tokens = TokenFile.read(path)

    def current(self) -> TokenFile:
        """The valid tokens.

        Raises:
            UserError: the file is gone or damaged since. What it said before does not count: somebody may have revoked all.
        """
        stamp = self._stamp()
        if stamp is None or stamp != self._seen:
            self._tokens = TokenFile.read(self._path)
            self._seen = stamp
        return self._tokens

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def new_token(name: str, scopes: Sequence[Scope | str]) -> tuple[str, TokenEntry]:
    """A new token: its secret, to be shown once, and its entry for the file.

    Raises:
        UserError: the name or a scope cannot be.
    """
    secret = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    try:
        entry = TokenEntry.model_validate(
            {"name": name, "sha256": _digest(secret), "scopes": tuple(dict.fromkeys(scopes)), "created": datetime.now(UTC)}
        )
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        fix = f"Scopes: {', '.join(Scope)}" if field == "scopes" else "Take up to 64 letters, digits, and any of . _ @ -"
        raise UserError(f"token {name!r}: its {field} cannot be {scopes if field == 'scopes' else name!r}", fix) from None
    return secret, entry


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for other processes that change the file; the lock is a file beside it, as the file itself is replaced."""
    target = Path(os.path.realpath(path))
    try:
        lock = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"token file {path}: {error.strerror}", "Give a path in a folder that you can write")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

"""Where a server is and who asks it, checked before anything is sent; what is secret of it is in no message."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from longhaul.errors import UserError

_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


def address_of(url: str, token: str | None) -> tuple[str, dict[str, str]]:
    """The address without a name and password, and the headers that say who asks.

    Args:
        url: such as `http://127.0.0.1:8000`; a `user:password@` before the host, for a proxy that asks for one, goes into
            the headers.
        token: of `longhaul token new`; blanks around it, such as a file's last newline, do not count.

    Raises:
        UserError: no such address or token can be, or both a password and a token are given; the message quotes neither.
    """
    shown = re.sub(r"^([a-z]*://)?.*@", r"\1", url, flags=re.IGNORECASE | re.DOTALL)
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        user, password, port = parts.username, parts.password, parts.port
    except (ValueError, httpx.InvalidURL) as error:
        reason = f" ({error})" if shown == url else ""
        raise UserError(f"{shown}: is no address of a server{reason}", "Give it as http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UserError(f"{shown}: is no address of a server", "Give it with its scheme, such as http://127.0.0.1:8000")
    place = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, place, parts.path, "", "")).rstrip("/")
    headers = _bearer(token)
    if user is not None or password is not None:
        if headers:
            raise UserError(f"{bare}: a password and a token are given, and a request has room for one", "Leave one out")
        pair = f"{unquote(user or '')}:{unquote(password or '')}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return bare, headers


def _bearer(token: str | None) -> dict[str, str]:
    secret = (token or "").strip()
    if not secret:
        return {}
    if not _TOKEN.fullmatch(secret):
        raise UserError(
            "the token has characters that no token has", "Give it as `longhaul token new` printed it: letters, digits, _ and -"
        )
    return {"Authorization": f"Bearer {secret}"}

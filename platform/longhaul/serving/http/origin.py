"""What an open server asks instead of a token: that it is addressed as this machine, and not by another site's page.

Any page in the user's browser can send requests to this machine's ports (RFC 6454's `Origin` says which one does), and a page
whose name is made to resolve to 127.0.0.1 (DNS rebinding) could read the answers too: then `Host` has that page's name.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from longhaul.serving.refusals import ForeignSite

_FIX = "Ask as http://127.0.0.1 or http://localhost, or have the server's operator give it a token file"


def check_local(headers: Headers) -> None:
    """Let pass who names this machine, or says nothing, which no browser does.

    Raises:
        ForeignSite: `Host` or `Origin` names another place.
    """
    for host in headers.getlist("host"):
        if not _is_loopback(f"//{host}"):
            raise ForeignSite(f"host {host[:100]!r}: is not this machine, and this server asks for no tokens", _FIX)
    for origin in headers.getlist("origin"):
        if not _is_loopback(origin):  # also `null`, of pages without an address
            raise ForeignSite(f"origin {origin[:100]!r}: pages of other sites are not answered", _FIX)


def _is_loopback(address: str) -> bool:
    try:
        parts = urlsplit(address)
        name = (parts.hostname or "").removesuffix(".")
        parts.port  # noqa: B018 - raises for what is none
        if "@" in parts.netloc:
            return False
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

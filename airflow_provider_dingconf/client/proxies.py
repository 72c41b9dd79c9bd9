"""The proxy for a URL: the connection's, or else the environment's; for HTTP calls and WebSockets.

Both are read as requests reads them. For a loopback host, only the connection's proxies count.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEY = re.compile(r"(https?|all)(://([a-z0-9._\-]+|\[[a-f0-9:.]+\]))?")
# The credentials end at the last @, and may contain any character.
_PROXY = re.compile(
    r"((?P<scheme>[a-z][a-z0-9+.\-]*)://)?((?P<user>[^:]*)(:(?P<password>.*))?@)?"
    r"(?P<host>[a-z0-9._\-]+|\[[a-f0-9:.]+\])(:(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the credentials for it."""

    url: str  # scheme, host and port
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # of a request to it: the credentials
    secrets: tuple[str, ...] = field(default=(), repr=False)  # the password, in all forms


def read_proxy(text: str) -> Proxy:
    """Return the proxy with a URL.

    :param text: the URL. Its credentials may be percent-encoded, and the default scheme is http.
    :raises ValueError: the proxy cannot be used; the message says why, without the URL.
    """
    found = _PROXY.fullmatch(text.strip())
    scheme = ((found and found["scheme"]) or "http").lower()
    if scheme.startswith("socks"):
        raise ValueError(f"a SOCKS proxy ({scheme}) cannot be used; name an HTTP proxy")
    if not found or scheme not in {"http", "https"} or not is_port(found["port"] or "80"):
        raise ValueError("it is not the URL of an HTTP proxy, such as http://proxy.example:3128")
    host, port = found["host"].lower(), f":{int(found['port'])}" if found["port"] else ""
    user, written = unquote(found["user"] or ""), found["password"] or ""
    password = unquote(written)
    if ":" in user:
        raise ValueError("its user name holds a colon, which HTTP's Basic authentication cannot send")
    try:
        sent = base64.b64encode(f"{user}:{password}".encode()).decode()
    except UnicodeError:
        raise ValueError("its credentials hold characters that cannot be sent") from None
    forms = dict.fromkeys((written, password, quote(password), quote(password, safe=""), sent))
    headers = {"Proxy-Authorization": f"Basic {sent}"} if user or password else {}
    return Proxy(f"{scheme}://{host}{port}", headers, tuple(forms) if password else ())


def read_proxies(own: Any) -> dict[str, Proxy]:
    """Return the proxies of a connection, by the scheme, or the scheme and host, that they are for.

    :raises ValueError: one of them cannot be used; the message says why, without a secret.
    """
    if not isinstance(own, dict) or not all(isinstance(url, str) for url in own.values()):
        raise ValueError('expected an object of proxy URLs, such as {"https": "http://proxy.example:3128"}')
    if not all(_KEY.fullmatch(key.lower()) for key in own):
        raise ValueError("expected proxy URLs for http, https, all, or one of these and a host: https://host")
    return {key.lower(): read_proxy(url) for key, url in own.items()}


def proxy_for(url: str, own: Mapping[str, Proxy]) -> Proxy | None:
    """Return the proxy for a URL; None for a direct connection.

    :param url: a URL with the scheme http, https, ws or wss.
    :param own: the connection's proxies, from :func:`read_proxies`.
    :raises InvalidInputError: the environment's proxy cannot be used; the message names the variable.
    """
    parts = urlsplit(url)
    scheme, host = parts.scheme.replace("ws", "http"), parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    for key in (f"{scheme}://{shown}", scheme, f"all://{shown}", "all"):
        if key in own:
            return own[key]
    # The variable in lower case wins, even if it is empty.
    names = (low if low in os.environ else low.upper() for low in (f"{scheme}_proxy", "all_proxy"))
    variable = next(filter(os.environ.get, names), None)
    if variable is None or is_loopback(host):
        return None
    from requests.utils import should_bypass_proxies  # costly to import, and few have a proxy

    if should_bypass_proxies(f"{scheme}://{parts.netloc}", no_proxy=None):
        return None
    try:
        return read_proxy(os.environ[variable])
    except ValueError as problem:
        raise InvalidInputError(f"environment variable {variable}: {problem}") from None


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a host as an IP address; None if it is a name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def is_port(text: str) -> bool:
    """Return whether a text is a port number."""
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65536


def is_loopback(host: str | None) -> bool:
    """Return whether a host is this machine, by its address or as ``localhost``."""
    address = ip_address(host or "")
    return address.is_loopback if address else host == "localhost"

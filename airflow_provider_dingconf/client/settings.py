"""The Airflow connection, read once and in full: what it says becomes :class:`Settings`, or one clear error.

A connection means the same as a URI, as JSON and in the UI: a URI's extras are all strings, and the UI
sends an empty string for a field that was left empty.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import ssl
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from airflow_provider_dingconf.dingtalk.calls import INTERNATIONAL_HOST
from airflow_provider_dingconf.dingtalk.errors import InvalidConnectionError
from airflow_provider_dingconf.dingtalk.limits import LONGEST_SECONDS
from airflow_provider_dingconf.dingtalk.tokens import App, Token
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow.providers.common.compat.sdk import Connection

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0

_SEGMENT = re.compile(r"[A-Za-z0-9\-._~]+")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
# The host itself is not shown: the address of a robot, pasted by mistake, holds an access token.
_NO_HOST = "it is not a host, with or without https:// and a port"
_NETLOC = re.compile(r"([A-Za-z0-9.\-]+|\[[A-Fa-f0-9.]*:[A-Fa-f0-9:.]*\])(:[0-9]*)?")
# RFC 1035's lengths; a name that ends in a number would be an address.
_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)([a-z0-9\-]{1,63}\.)*(?![0-9]+\.?$)[a-z0-9\-]{1,63}\.?")
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True)
class Timeout:
    """How long to wait for DingTalk.

    :param connect: seconds until a connection stands.
    :param read: seconds until the next piece of the answer.
    """

    connect: float = CONNECT_SECONDS
    read: float = READ_SECONDS


@dataclass(frozen=True)
class Settings:
    """What a connection says.

    :param conn_id: the connection's id.
    :param base_url: scheme, host and port, without a slash at the end.
    :param app: the credentials that buy a token; None where a static token is given.
    :param static_token: a token bought elsewhere, used as it is.
    :param proxies: proxy URLs by scheme, as requests takes them.
    :param verify: whether certificates are verified, or the file of the authorities to verify them with.
    :param cert: the client's certificate file, or that and its key file.
    :param token_cache: whether access tokens are shared between the processes of the host, or the directory
        of the files that share them.
    """

    conn_id: str
    base_url: str
    app: App | None = None
    static_token: Token | None = None
    timeout: Timeout = Timeout()
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    token_cache: bool | str = True

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """What must be shown to no one."""
        own = (self.static_token.value,) if self.static_token else ()
        proxy = (urlsplit(url).password for url in self.proxies.values())
        return (*own, *(self.app.secrets if self.app else ()), *(word for word in proxy if word))

    @property
    def on_this_machine(self) -> bool:
        """Whether the host is a loopback address, to which no proxy leads."""
        return _is_loopback(urlsplit(self.base_url).hostname or "")

    @property
    def events_app(self) -> App:
        """The credentials that DingTalk gives events for.

        :raises InvalidConnectionError: the connection has a static access token in their place.
        """
        if self.app is None:
            raise InvalidConnectionError(
                f"connection {self.conn_id!r}, login (Client ID): it is missing; "
                "events come to an app, not to an access token"
            )
        return self.app


def read_connection(conn: Connection, conn_id: str) -> Settings:
    """Return what a connection says.

    :param conn: the Airflow connection.
    :param conn_id: its id, for the error.
    :raises InvalidConnectionError: a field is missing, contradictory, unknown, or of a wrong type; the
        message names the connection and the field, and no secret.
    """
    return _Reader(conn, conn_id).settings()


class _Reader:
    def __init__(self, conn: Connection, conn_id: str) -> None:
        self.conn = conn
        self.conn_id = conn_id

    def settings(self) -> Settings:
        extra = self._extra()
        read: dict[str, Any] = {
            name: parse(self, name, extra[name]) for name, parse in _EXTRA.items() if _given(extra.get(name))
        }
        app, static_token = self._credentials(read)
        base_url = self._base_url()
        if base_url.startswith("http:"):
            self._check_plain_proxies(read.get("proxies", {}))
        return Settings(
            conn_id=self.conn_id,
            base_url=base_url,
            app=app,
            static_token=static_token,
            **{name: read[name] for name in _PLAIN if name in read},
        )

    def fail(self, name: str, problem: str) -> NoReturn:
        # What an error of Python's shows can be a secret.
        raise InvalidConnectionError(f"connection {self.conn_id!r}, {name}: {problem}") from None

    def _extra(self) -> dict[str, Any]:
        text = self.conn.extra
        if not text:
            return {}
        try:
            extra = json.loads(text)
        except (ValueError, RecursionError):
            self.fail("extra", "it is not JSON")
        if not isinstance(extra, dict):
            self.fail("extra", f"it is a JSON {type(extra).__name__}, not an object")
        # The Test button of Airflow 2 sends each field of the form twice.
        again = {f"extra__{self.conn.conn_type}__{name}": value for name, value in extra.items()}
        extra = {name: value for name, value in extra.items() if (name, value) not in again.items()}
        for name in extra:
            if name not in _EXTRA:
                near = difflib.get_close_matches(name, _EXTRA, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(_EXTRA))}"
                self.fail(f"extra {ascii(name)[:80]}", f"it is unknown; {hint}")
        return extra

    def _credentials(self, read: Mapping[str, Any]) -> tuple[App | None, Token | None]:
        corp_id, ticket, token = (read.get(name) for name in ("corp_id", "suite_ticket", "access_token"))
        if ticket and not corp_id:
            self.fail(
                _of_extra("suite_ticket"),
                f"it needs {_of_extra('corp_id')}, which authorised the third-party app",
            )
        if token:
            return None, Token(token)
        login = self._plain("login (Client ID)", self.conn.login)
        password = self._plain("password (Client Secret)", self.conn.password)
        return App(login, password, corp_id, ticket), None

    def _check_plain_proxies(self, proxies: Mapping[str, str]) -> None:
        """Refuse a proxy that would be shown what plain http is for this machine alone to see."""
        for scheme, url in proxies.items():
            if not scheme.startswith("https") and not _is_loopback(urlsplit(url).hostname or ""):
                self.fail(
                    _of_extra("proxies"), "plain http would show the credentials to the proxy; use https"
                )

    def _plain(self, name: str, value: str | None) -> str:
        if not value:
            self.fail(name, f"it is missing; give it, or {_of_extra('access_token')}")
        return self.printable(name, value)

    def printable(self, name: str, value: str) -> str:
        if not _PRINTABLE.fullmatch(value):
            self.fail(
                name, "it has white space or characters other than printable ASCII; was it copied in full?"
            )
        return value

    def _base_url(self) -> str:
        host = (self.conn.host or "").strip()
        schema = (self.conn.schema or "").strip().lower()
        if schema and schema not in {"http", "https"}:
            self.fail("schema", f"{ascii(schema)[:80]} is not http or https; it may be empty")
        if not host:
            host = INTERNATIONAL_HOST
        url = host if "://" in host else f"{schema or 'https'}://{host}"
        scheme, _, rest = url.partition("://")
        if ":" in rest and _address(rest):
            url = f"{scheme}://[{rest}]"  # Airflow takes the brackets from the host of a URI
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            self.fail("host", _NO_HOST)
        if parts.username is not None or parts.password is not None:
            self.fail("host", "it holds credentials; they go into login and password")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            self.fail("host", _NO_HOST)
        if parts.query or parts.fragment or not _NETLOC.fullmatch(parts.netloc) or port == 0:
            self.fail("host", _NO_HOST)
        if not _address(parts.hostname) and not _HOST_NAME.fullmatch(parts.hostname):
            self.fail("host", "no host can have this name")
        if schema and schema != parts.scheme:
            self.fail("schema", f"{schema} contradicts the host's {parts.scheme}")
        own_port = self._port()
        if own_port and port and own_port != port:
            self.fail("port", f"{own_port} contradicts the host's {port}")
        port = port or own_port
        if port == {"http": 80, "https": 443}[parts.scheme]:
            port = None
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            self.fail("host", "plain http would show the credentials to the network; use https")
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{parts.scheme}://{name}" + (f":{port}" if port else "")

    def _port(self) -> int | None:
        port = self.conn.port
        if not port:
            return None  # the Test button of Airflow 3 sends 0 for none
        if not re.fullmatch("[0-9]{1,5}", str(port)) or not 0 < int(port) < 65536:
            self.fail("port", f"{ascii(port)[:80]} is not a port, from 1 to 65535")
        return int(port)


def _of_extra(name: str) -> str:
    """Return what a field of the extra is called: by who writes JSON, and in the form."""
    return f"extra {name!r} ({CONNECTION_TYPE['conn-fields'][name]['label']})"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host == "localhost"


def _given(value: object) -> bool:
    return value is not None and value != ""


def _structured(value: Any) -> Any:
    """Return what a string of JSON holds, since a URI can hold nothing but strings."""
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _text(reader: _Reader, name: str, value: Any) -> str:
    if not isinstance(value, str):
        reader.fail(_of_extra(name), f"expected a string, got {type(value).__name__}")
    return reader.printable(_of_extra(name), value)


def _corp_id(reader: _Reader, name: str, value: Any) -> str:
    text = _text(reader, name, value)
    if not _SEGMENT.fullmatch(text) or text in {".", ".."}:
        reader.fail(_of_extra(name), "it is not a corpId, such as dingxxxxxxxx")
    return text


def _seconds(reader: _Reader, name: str, value: Any) -> float:
    try:
        seconds = (
            float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
        )
    except (ValueError, OverflowError):
        seconds = 0.0
    if not 0 < seconds <= LONGEST_SECONDS:
        reader.fail(
            _of_extra(name),
            f"expected a number of seconds above 0 and up to a day ({LONGEST_SECONDS}), or [connect, read]",
        )
    return seconds


def _timeout(reader: _Reader, name: str, value: Any) -> Timeout:
    value = _structured(value)
    if isinstance(value, list) and len(value) == 2:
        return Timeout(*(_seconds(reader, name, part) for part in value))
    seconds = _seconds(reader, name, value)
    return Timeout(seconds, seconds)


def _proxies(reader: _Reader, name: str, value: Any) -> dict[str, str]:
    value = _structured(value)
    if not isinstance(value, dict) or not all(map(_is_proxy, value.values())):
        reader.fail(
            _of_extra(name),
            'expected an object of proxy URLs, http or https, such as {"https": "http://proxy:3128"}',
        )
    return value


def _is_proxy(url: object) -> bool:
    """Return whether it is the URL of a proxy that requests and aiohttp can use: of SOCKS, aiohttp cannot."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _switch(value: Any) -> bool | None:
    """Return what a boolean, or a word for one, says; None for anything else."""
    word = str(value).strip().lower()
    return word in _TRUE if word in _TRUE | _FALSE else None


def _verify(reader: _Reader, name: str, value: Any) -> bool | str:
    switch = _switch(value)
    if switch is not None:
        return switch
    file = _file(reader, name, value)
    where = "capath" if Path(file).is_dir() else "cafile"
    _loaded(reader, name, ssl.SSLContext.load_verify_locations, **{where: file})
    return file


def _token_cache(reader: _Reader, name: str, value: Any) -> bool | str:
    switch = _switch(value)
    if switch is not None:
        return switch
    if not isinstance(value, str) or "\0" in value or not Path(value).is_absolute():
        reader.fail(_of_extra(name), "expected true, false, or the absolute path of a directory")
    return value


def _cert(reader: _Reader, name: str, value: Any) -> str | tuple[str, str]:
    value = _structured(value)
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    files = [_file(reader, name, part) for part in parts]
    # An empty password, so that OpenSSL does not ask a terminal for one.
    _loaded(reader, name, ssl.SSLContext.load_cert_chain, *files, password="")  # nosec B106
    return (files[0], files[1]) if len(files) == 2 else files[0]


def _loaded(reader: _Reader, name: str, load: Callable[..., object], *args: str, **kwargs: str) -> None:
    """Try a file of certificates, so that a wrong one is the connection's error and not a lost call."""
    try:
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), *args, **kwargs)
    except (OSError, ValueError) as error:
        reader.fail(_of_extra(name), f"it cannot be used: {error}")


def _file(reader: _Reader, name: str, value: Any) -> str:
    expected = (
        "expected true, false or an existing file"
        if name == "verify"
        else "expected an existing certificate file, or [certificate, key]"
    )
    if not isinstance(value, str):
        reader.fail(_of_extra(name), expected)
    try:
        Path(value).stat()
    except OSError as error:
        # The value itself is not shown: a private key, pasted by mistake, is no file either.
        reader.fail(_of_extra(name), f"{expected}: {error.strerror}")
    except ValueError:
        reader.fail(_of_extra(name), expected)
    return value


_EXTRA: dict[str, Callable[[_Reader, str, Any], Any]] = {
    "corp_id": _corp_id,
    "suite_ticket": _text,
    "access_token": _text,
    "timeout": _timeout,
    "proxies": _proxies,
    "verify": _verify,
    "cert": _cert,
    "token_cache": _token_cache,
}
_PLAIN = ("timeout", "proxies", "verify", "cert", "token_cache")

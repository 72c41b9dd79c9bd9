"""``read_connection``: the Airflow connection as :class:`Settings`, or one clear error.

A connection means the same as a URI, as JSON and in the UI, although all extras of a URI are strings, and the
UI sends an empty string for an empty field.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from airflow_provider_dingconf.client import proxies
from airflow_provider_dingconf.client.proxies import Proxy, ip_address, is_loopback, is_port
from airflow_provider_dingconf.dingtalk import limits
from airflow_provider_dingconf.dingtalk.calls import INTERNATIONAL_HOST
from airflow_provider_dingconf.dingtalk.errors import InvalidConnectionError, InvalidInputError
from airflow_provider_dingconf.dingtalk.inputs import hint
from airflow_provider_dingconf.dingtalk.tokens import App, Token
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.providers.common.compat.sdk import Connection

_TYPE = CONNECTION_TYPE["connection-type"]
_FIELDS = CONNECTION_TYPE["conn-fields"]
_SEGMENT = re.compile(r"[A-Za-z0-9\-._~]+")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
# The host itself is not shown: the address of a robot, pasted by mistake, holds an access token.
_NO_HOST = "it is not a host, with or without https:// and a port"
_HOST = re.compile(
    r"((?P<credentials>[^/?#]*)@)?(?P<name>[a-z0-9.\-]+|\[[a-f0-9.]*:[a-f0-9:.]*\])"
    r"(:(?P<port>[0-9]*))?(?P<rest>[/?#].*)?"
)
# RFC 1035's lengths; a name that ends in a number would be an address.
_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)([a-z0-9\-]{1,63}\.)*(?![0-9]+\.?$)[a-z0-9\-]{1,63}\.?")
_OTHER_HOSTS = frozenset({"oapi.dingtalk.com", "open.dingtalk.com", "help.dingtalk.io"})
"""Hosts of DingTalk's old API and of its documentation."""
_PORTS = {"http": 80, "https": 443}
_SWITCH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


@dataclass(frozen=True)
class Timeout:
    """How long to wait for DingTalk.

    :param connect: seconds to wait for a connection.
    :param read: seconds to wait for the next part of the response.
    """

    connect: float = 5.0
    read: float = 10.0


def _fail(field: str, problem: str) -> NoReturn:
    """Refuse a field. Neither text may contain a value that can be a secret."""
    raise PydanticCustomError(field, problem) from None


def _of_extra(name: str) -> str:
    """Return the names of a field of the extra: in JSON, and in the form."""
    return f"extra {name!r} ({_FIELDS[name]['label']})"


def _structured(value: Any) -> Any:
    """Return the value of a JSON string: a URI can only have strings. Return any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _above_0(value: Any, most: float, expected: str) -> float:
    with suppress(ValueError, OverflowError, TypeError):
        if not isinstance(value, bool) and 0 < float(value) <= most:
            return float(value)
    raise ValueError(f"expected {expected}")


def _seconds(value: Any, expected: str = limits.SECONDS) -> float:
    return _above_0(value, limits.LONGEST_SECONDS, expected)


def _timeout(value: Any) -> Timeout:
    pair = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value, value]
    expected = f"{limits.SECONDS}, or [connect, read]"
    return Timeout(_seconds(pair[0], expected), _seconds(pair[1], expected))


def _calls_per_second(value: Any) -> float:
    return _above_0(value, sys.float_info.max, "a number of calls above 0, such as 18")


def _switch(value: Any) -> bool | None:
    return _SWITCH.get(str(value).strip().lower())


def _token_cache(value: Any) -> bool | str:
    switch = _switch(value)
    if switch is None and not (isinstance(value, str) and "\0" not in value and Path(value).is_absolute()):
        raise ValueError("expected true, false, or the absolute path of a directory")
    return value if switch is None else switch


def _verify(value: Any) -> bool | str:
    switch = _switch(value)
    if switch is not None:
        return switch
    with _files("expected true, false, or an existing file or directory", value) as context:
        context.load_verify_locations(**{"capath" if Path(value).is_dir() else "cafile": value})
    return str(value)


def _cert(value: Any) -> str | tuple[str, str]:
    files = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    with _files("expected an existing certificate file, or [certificate, key]", *files) as context:
        load_certificate(context, files)
    return (files[0], files[1]) if len(files) == 2 else files[0]


def load_certificate(context: ssl.SSLContext, files: Sequence[str]) -> None:
    """Load a client's certificate: a file, or one and that of its key."""
    # An empty password, since OpenSSL would ask a terminal for one.
    context.load_cert_chain(*files, password="")  # nosec B106


@contextmanager
def _files(expected: str, *files: Any) -> Iterator[ssl.SSLContext]:
    """Check certificate files now: a wrong file is an error of the connection, not of a call."""
    try:
        for file in files:
            Path(file).stat()
    except OSError as error:
        # The value itself is not shown: a private key, pasted by mistake, is no file either.
        raise ValueError(f"{expected}: {error.strerror}") from None
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    try:
        yield ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except (OSError, ValueError) as error:
        raise ValueError(f"it cannot be used: {error}") from None


_Proxies = Annotated[dict[str, Proxy], PlainValidator(proxies.read_proxies)]


class Settings(BaseModel):
    """The values of a connection.

    :param base_url: scheme, host and port, without a slash at the end.
    :param app: the credentials that fetch a token; None if there is a static token.
    :param static_token: the connection's own access token; None if there are credentials.
    :param calls_per_second: the maximum rate for many meetings, polls and roll-backs.
    :param stream_silence: seconds without a message after which the event stream is opened again.
    :param proxies: by scheme, as in requests.
    :param verify: whether to verify certificates, or a file with the authorities to trust.
    :param cert: the client's certificate file, or that and its key file.
    :param token_cache: whether processes share access tokens, or the directory for the shared files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    conn_id: str
    base_url: str
    app: App | None = None
    static_token: Token | None = None
    timeout: Annotated[Timeout, PlainValidator(_timeout)] = Timeout()
    calls_per_second: Annotated[float, PlainValidator(_calls_per_second)] = limits.CALLS_PER_SECOND
    stream_silence: Annotated[float, PlainValidator(_seconds)] = limits.STREAM_SILENCE
    proxies: _Proxies = Field(default={}, repr=False)
    verify: Annotated[bool | str, PlainValidator(_verify)] = True
    cert: Annotated[str | tuple[str, str] | None, PlainValidator(_cert)] = None
    token_cache: Annotated[bool | str, PlainValidator(_token_cache)] = True

    @model_validator(mode="after")
    def _check_plain_proxies(self) -> Settings:
        """Refuse a proxy on another machine for plain http: it would see the credentials."""
        for key, proxy in self.proxies.items() if self.base_url.startswith("http:") else ():
            if not key.startswith("https") and not is_loopback(urlsplit(proxy.url).hostname):
                _fail(_of_extra("proxies"), "plain http would show the credentials to the proxy; use https")
        return self

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """All secrets, including the password of the environment's proxy."""
        own = (self.static_token.value,) if self.static_token else ()
        used = [*self.proxies.values()]
        with suppress(InvalidInputError):  # the call names the variable
            used += filter(None, [self.proxy])
        of_proxies = (secret for proxy in used for secret in proxy.secrets)
        return (*own, *(self.app.secrets if self.app else ()), *of_proxies)

    @cached_property
    def proxy(self) -> Proxy | None:
        """The proxy that leads to the host; see :meth:`proxy_for`."""
        return self.proxy_for(self.base_url)

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy that leads to a URL: the connection's, else the environment's; None for none.

        :raises InvalidInputError: the environment's proxy cannot be used; the message names the variable.
        """
        return proxies.proxy_for(url, self.proxies)

    @property
    def events_app(self) -> App:
        """The credentials that event streams need.

        :raises InvalidConnectionError: the connection has a static access token instead.
        """
        if self.app is None:
            raise InvalidConnectionError(
                f"connection {self.conn_id!r}, login (Client ID): it is missing; "
                "events come to an app, not to an access token"
            )
        return self.app


def read_connection(conn: Connection, conn_id: str) -> Settings:
    """Return the settings of a connection.

    :param conn: the Airflow connection.
    :param conn_id: its id, for the error.
    :raises InvalidConnectionError: a field is missing, contradictory, unknown, or of a wrong type, or the
        connection is of another type; the message names the connection and the field, and no secret.
    """
    try:
        return Settings.model_validate({"conn_id": conn_id, **_fields_of(conn)})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        plain = first["type"] == "value_error"
        field = _of_extra(str(first["loc"][0])) if plain else first["type"]
        problem = first["msg"].removeprefix("Value error, ")
    except PydanticCustomError as error:
        field, problem = error.type, error.message()
    # Not within the except blocks: the context of pydantic's error can hold a secret.
    raise InvalidConnectionError(f"connection {conn_id!r}, {field}: {problem}")


def _fields_of(conn: Connection) -> dict[str, Any]:
    """Return the fields of :class:`Settings` from a connection; those of its extra are not yet checked."""
    for name in ("conn_type", "host", "schema"):  # a secrets backend may give any JSON value
        if not isinstance(value := getattr(conn, name) or "", str):
            _fail(name, f"expected a string, got {type(value).__name__}")
    # Airflow gives a connection without a type None, or an empty one.
    kind = (conn.conn_type or _TYPE).lower()
    if kind != _TYPE:
        whose = ", the type of Airflow's own dingding provider, which is for chat robots"
        said = f"{ascii(kind)[:80]}{whose if kind == 'dingding' else ''}"
        _fail("conn_type (Connection Type)", f"it is {said}; this needs a connection of type {_TYPE}")
    extra = _extra_of(conn)
    texts = {name: extra.pop(name, None) for name in ("corp_id", "suite_ticket", "access_token")}
    for name, text in texts.items():
        if text is not None:
            _check_text(_of_extra(name), text)
    extra = {name: _structured(value) for name, value in extra.items()}
    corp_id, ticket, token = texts.values()
    if corp_id and (not _SEGMENT.fullmatch(corp_id) or corp_id in {".", ".."}):
        _fail(_of_extra("corp_id"), "it is not a corpId, such as dingxxxxxxxx")
    if ticket and not corp_id:
        organisation = f"{_of_extra('corp_id')}, which authorised the third-party app"
        _fail(_of_extra("suite_ticket"), f"it needs {organisation}")
    if token:
        return {"base_url": _base_url(conn), "static_token": Token(token), **extra}
    for field, text in (("login (Client ID)", conn.login), ("password (Client Secret)", conn.password)):
        if not text:
            _fail(field, f"it is missing; give it, or {_of_extra('access_token')}")
        _check_text(field, text)
    app = App(conn.login or "", conn.password or "", corp_id, ticket)
    return {"base_url": _base_url(conn), "app": app, **extra}


def _extra_of(conn: Connection) -> dict[str, Any]:
    """Return the fields of the extra that are not empty."""
    extra: Any = conn.extra or {}
    try:
        extra = json.loads(extra) if isinstance(extra, (str, bytes)) else extra  # a secrets backend's dict
    except (ValueError, RecursionError):
        _fail("extra", "it is not JSON")
    if not isinstance(extra, dict):
        _fail("extra", f"it is a JSON {type(extra).__name__}, not an object")
    # The Test button of Airflow 2 sends each field of the form twice.
    again = {f"extra__{_TYPE}__{name}": value for name, value in extra.items()}
    extra = {name: value for name, value in extra.items() if (name, value) not in again.items()}
    for name in extra:
        if name not in _FIELDS:
            _fail(f"extra {ascii(name)[:80]}", f"it is unknown{hint(name, sorted(_FIELDS))}")
    return {name: value for name, value in extra.items() if value is not None and value != ""}


def _check_text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        _fail(field, f"expected a string, got {type(value).__name__}")
    if not _PRINTABLE.fullmatch(value):
        _fail(field, "it has white space or a character that is not printable ASCII; was it copied in full?")


def _base_url(conn: Connection) -> str:
    """Return scheme, host and port."""
    host, schema = (conn.host or "").strip() or INTERNATIONAL_HOST, (conn.schema or "").strip().lower()
    if schema and schema not in _PORTS:
        _fail("schema", f"{ascii(schema)[:80]} is not http or https; it may be empty")
    scheme, _, address = (host if "://" in host else f"{schema or 'https'}://{host}").lower().partition("://")
    if ":" in address and ip_address(address):
        address = f"[{address}]"  # Airflow takes the brackets from the host of a URI
    found = _HOST.fullmatch(address)
    if found is None:
        _fail("host", _NO_HOST)
    name, given, own = found["name"], found["port"], str(conn.port or "")  # Airflow 3's Test button sends 0
    if found["credentials"] is not None:
        _fail("host", "it holds credentials; they go into login and password")
    if name.rstrip(".") in _OTHER_HOSTS:
        instead = "leave Host empty, or use api.dingtalk.com for mainland China"
        _fail("host", f"{name} is not a host of this API; {instead}")
    if scheme not in _PORTS or found["rest"] not in {None, "/"} or (given and not is_port(given)):
        _fail("host", _NO_HOST)
    if not ip_address(name.strip("[]")) and not _HOST_NAME.fullmatch(name):
        _fail("host", "no host can have this name")
    if schema and schema != scheme:
        _fail("schema", f"{schema} contradicts the host's {scheme}")
    if own and not is_port(own):
        _fail("port", f"{ascii(conn.port)[:80]} is not a port, from 1 to 65535")
    if own and given and int(own) != int(given):
        _fail("port", f"{own} contradicts the host's {given}")
    if scheme == "http" and not is_loopback(name.strip("[]")):
        _fail("host", "plain http would show the credentials to the network; use https")
    port = int(given or own or _PORTS[scheme])
    return f"{scheme}://{name}" + ("" if port == _PORTS[scheme] else f":{port}")

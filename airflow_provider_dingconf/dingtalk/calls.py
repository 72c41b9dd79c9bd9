"""DingTalk's calls as plain values: :class:`Call`, :class:`Request` and :class:`Response`.

With an access token, a call becomes a request: the bytes for the wire. Nothing here sends anything.
"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from airflow_provider_dingconf import __version__
from airflow_provider_dingconf.dingtalk.endpoints import LOCK, UNLOCK, Endpoint
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.dingtalk.inputs import (
    SEGMENT_CHAR,
    check_switch,
    check_text,
    digits_of,
    plain,
    shown,
)
from airflow_provider_dingconf.dingtalk.records import read_page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_provider_dingconf.dingtalk.conferences import Reference

INTERNATIONAL_HOST = "https://api.dingtalk.io"

# The name of a header, not a secret.
TOKEN_HEADER = "x-acs-dingtalk-access-token"  # noqa: S105  # nosec B105
USER_AGENT = f"airflow-provider-dingconf/{__version__}"

ERROR_CODES_PAGE = "server-api-error-codes-1"

_PATH = re.compile(f"(/({SEGMENT_CHAR}|%[0-9A-Fa-f]{{2}})+)+")
_WORD = re.compile("[a-z]+([A-Z][a-z]+)*")
_PLACEHOLDER = re.compile(r"\{([^{}/]*)\}")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_to_json = jsonlib.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class Call:
    """One call of DingTalk's API."""

    endpoint: Endpoint
    name: str  # what a log calls it
    target: str  # path and query, percent-encoded
    content: bytes | None = field(default=None, repr=False)  # the JSON body
    # Converts the JSON of a successful response, or raises a ResponseError.
    read: Callable[[Any], Any] | None = field(default=None, repr=False, compare=False)

    def request(self, access_token: str | None = None) -> Request:
        """Return the request for the wire: what DingTalk's official SDK sends, and nothing else."""
        headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
        if self.content is not None:
            headers["Content-Type"] = "application/json; charset=utf-8"
        if access_token is not None:
            headers[TOKEN_HEADER] = access_token
        return Request(self.endpoint.method, self.target, headers, self.content)


@dataclass(frozen=True)
class Request:
    """A request for the wire."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Response:
    """A response from the wire; look up its headers by names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


def call_to(
    endpoint: Endpoint,
    about: object = "",
    *,
    params: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | list[Any] | None = None,
    read: Callable[[Any], Any] | None = None,
) -> Call:
    """Return a call.

    :param about: replaces the ``{}`` in the endpoint's path and name.
    :param params: query parameters: strings, numbers and booleans.
    :raises TypeError, ValueError, RecursionError: a parameter or the body cannot be sent.
    """
    query = f"?{_query(params)}" if params else ""
    content = None if body is None else _to_json(body).encode()
    return Call(endpoint, endpoint.name.format(about), endpoint.path.format(about) + query, content, read)


def page_call(
    endpoint: Endpoint, about: object, tokens: Sequence[str], max_results: int, read: Callable[[object], Any]
) -> Call:
    """Return the call that reads one page of a list, as a :class:`~.records.Page`; ``read`` reads one item.

    :param tokens: the ``next_token`` of every earlier page; none for the first page.
    """
    params = {"maxResults": max_results, **({"nextToken": tokens[-1]} if tokens else {})}
    read_items = partial(read_page, keys=endpoint.items, read=read, tokens=tokens)
    return call_to(endpoint, about, params=params, read=read_items)


def lock_call(meeting: Reference, action: str) -> Call:
    """Return the call that locks or unlocks a meeting, by its ``conference_id``."""
    return call_to(LOCK if action == "lock" else UNLOCK, meeting.value, body={"action": action})


def any_call(
    method: str,
    path: str,
    *,
    path_params: Mapping[str, str | int] | None = None,
    params: Mapping[str, Any] | None = None,
    json: Mapping[str, Any] | list[Any] | None = None,
    repeatable: bool = True,
) -> Call:
    """Return any other call, with the parameters of ``DingTalkConferenceHook.call``.

    :param path: such as ``/v1.0/im/chats/{id}``; it may be percent-encoded already.
    :raises InvalidInputError: a parameter cannot be sent; the message names it.
    """
    verb = method.upper() if isinstance(method, str) else ""
    if verb not in _METHODS:
        raise InvalidInputError(f"method: {shown(method)} is not one of {', '.join(sorted(_METHODS))}")
    check_switch("repeatable", repeatable)
    if json is not None and not isinstance(json, (Mapping, list)):
        raise InvalidInputError(
            f"json: a body of type {type(json).__name__} cannot be sent; give a dict or a list"
        )
    filled = _filled(path, path_params)
    kind, name = kind_of(verb, path), f"{verb} {filled}"
    endpoint = Endpoint(kind, name, verb, filled, page=None, repeatable=repeatable, any_body=True)
    try:
        return call_to(endpoint, params=params, body=json)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"query parameters or body: they cannot be sent: {error}") from None


def kind_of(method: str, path: str) -> str:
    """Return a name for all calls with a method and path, such as ``GET_contact_users``.

    It consists of the words in the path, without placeholders and the version. An id in the path counts as a
    word if it looks like one.
    """
    return "_".join((method, *filter(_WORD.fullmatch, path.split("/"))))


def _filled(path: object, path_params: object) -> str:
    values = {} if path_params is None else path_params
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"path_params: expected a dict of values by name, got {shown(path_params)}")
    template = plain(path) if isinstance(path, str) else ""
    filled = _PLACEHOLDER.sub(lambda placeholder: _segment(placeholder[1], values), template)
    for name in values.keys() - set(_PLACEHOLDER.findall(template)):
        raise InvalidInputError(
            f"path_params: the path has no placeholder for {shown(name)}; write it in braces"
        )
    if not _PATH.fullmatch(filled) or _has_dots(unquote(filled)):
        raise InvalidInputError(
            f"path: {shown(path)} is not a plain absolute path such as /v1.0/conference/orgConferences; "
            "query parameters go into params, and values with other characters into path_params"
        )
    return filled


def _segment(name: str, values: Mapping[str, object]) -> str:
    parameter = f"path_params: {shown(name)}"
    if name not in values:
        raise InvalidInputError(f"{parameter} is missing, for which the path has a placeholder")
    text = check_text(parameter, digits_of(values[name]))
    if _has_dots(text):
        raise InvalidInputError(f"{parameter}: {shown(text)} would change the path of the call")
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{parameter}: it cannot be sent: {error}") from None


def _has_dots(text: str) -> bool:
    """Return whether a server that decodes slashes would find a segment ``.`` or ``..``."""
    return not {".", ".."}.isdisjoint(re.split(r"[/\\]", text))


def _query(params: Mapping[str, Any]) -> str:
    """Return query parameters, percent-encoded.

    A list is an error: DingTalk's SDK sends ``ids.1=a&ids.2=b`` for some calls, and JSON for others.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params is a {type(params).__name__}, not a mapping")
    texts = {}
    for name, value in params.items():
        if not isinstance(name, str):
            raise TypeError(f"the parameter's name {shown(name)} is a {type(name).__name__}, not a text")
        if not isinstance(value, (str, int, float)):
            raise TypeError(f"{shown(name)} is a {type(value).__name__}, not a text, a number or a boolean")
        texts[plain(name)] = plain(value) if isinstance(value, str) else _to_json(value)
    return urlencode(texts)


def documentation_url(page: str, base_url: str = INTERNATIONAL_HOST) -> str:
    """Return the address of a documentation page; mainland China, known by the host, has another site."""
    china = base_url.rstrip("/").endswith(".dingtalk.com")
    site = "open.dingtalk.com/document/development" if china else "help.dingtalk.io/open/development"
    return f"https://{site}/{quote(page)}"

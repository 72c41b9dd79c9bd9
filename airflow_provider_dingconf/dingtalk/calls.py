"""DingTalk's documented calls as plain values: method, path, body, and the documentation page.

A :class:`Call` says what to ask for. With the access token it becomes a :class:`Request`, the bytes for the
wire; a :class:`Response` is what DingTalk sends back. Nothing here sends anything.
"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from airflow_provider_dingconf import __version__
from airflow_provider_dingconf.dingtalk.errors import InvalidConferenceIdError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_dingconf.dingtalk.conferences import Reference

INTERNATIONAL_HOST = "https://api.dingtalk.io"
CHINA_HOST = "https://api.dingtalk.com"

# The name of a header, not a secret.
TOKEN_HEADER = "x-acs-dingtalk-access-token"  # noqa: S105  # nosec B105
USER_AGENT = f"airflow-provider-dingconf/{__version__}"

LOCK_PAGE = "api-lockconference"
ERROR_CODES_PAGE = "server-api-error-codes-1"

MAX_CONFERENCE_ID_LENGTH = 256

# RFC 3986's characters of a path segment, less "%": they go over the wire unchanged.
_CHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@]"
_SEGMENT = re.compile(f"{_CHAR}+")
_PATH = re.compile(f"(/({_CHAR}|%[0-9A-Fa-f]{{2}})+)+")
_WORD = re.compile("[a-z]+([A-Z][a-z]+)*")
_PLACEHOLDER = re.compile(r"\{([^{}/]*)\}")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Call:
    """One call of DingTalk's API.

    :param name: the name of the call in a log.
    :param method: the HTTP method.
    :param path: the path, percent-encoded, beginning with ``/``.
    :param body: the JSON body; None sends none.
    :param params: the query parameters.
    :param page: the name of the call's page in DingTalk's documentation.
    :param with_credentials: whether the app's credentials are in the body, and no access token is sent.
    :param repeatable: whether sending the call twice has the same effect as sending it once.
    :param kind: what a metric calls the call, without ids; by default, made of method and path.
    :param any_body: whether a successful response may have no body or any JSON, not only a JSON object.
    :param confirms: the field that is True in a successful response; None if the call documents none.
    :param read: converts the JSON of a successful response, or raises a ResponseError.
    """

    name: str
    method: str
    path: str
    body: Mapping[str, Any] | list[Any] | None = field(default=None, repr=False)
    params: Mapping[str, Any] | None = None
    page: str | None = None
    with_credentials: bool = False
    repeatable: bool = True
    kind: str = ""
    any_body: bool = False
    confirms: str | None = None
    read: Callable[[Any], Any] = field(default=lambda content: content, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", kind_of(self.method, self.path))

    def request(self, access_token: str | None = None) -> Request:
        """Return the request for the wire: what DingTalk's official SDK sends, and nothing else."""
        headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
        if self._content is not None:
            headers["Content-Type"] = "application/json; charset=utf-8"
        if access_token is not None:
            headers[TOKEN_HEADER] = access_token
        query = f"?{urlencode(_query(self.params))}" if self.params else ""
        return Request(self.method, self.path + query, headers, self._content)

    @cached_property
    def _content(self) -> bytes | None:
        if self.body is None:
            return None
        return jsonlib.dumps(self.body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class Request:
    """A request for the wire.

    :param target: path and query, percent-encoded.
    :param content: the body's bytes; None for no body.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Response:
    """A response from the wire.

    :param status: the HTTP status.
    :param headers: the headers, their names in lower case.
    :param content: the body's bytes.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


def lock_call(meeting: Reference, action: str) -> Call:
    """Return the call that locks or unlocks a meeting.

    Source: `Lock a meeting <https://help.dingtalk.io/open/development/api-lockconference>`__.

    :param meeting: the meeting by its ``conference_id``.
    :param action: ``lock`` or ``unlock``.
    :raises InvalidInputError: the action is another one, or the meeting is named by something else.
    """
    if action not in ("lock", "unlock"):
        raise InvalidInputError(f"action: {shown(action)} is neither lock nor unlock")
    path = f"/v1.0/conference/videoConferences/{meeting.conference_id}/lock"
    name, body = f"{action} {meeting.conference_id}", {"action": action}
    return Call(name, "POST", path, body, page=LOCK_PAGE, kind=action, confirms="success")


def any_call(
    method: str,
    path: str,
    *,
    path_params: Mapping[str, str | int] | None = None,
    params: Mapping[str, Any] | None = None,
    json: Mapping[str, Any] | list[Any] | None = None,
    repeatable: bool = True,
) -> Call:
    """Return any other call.

    :param method: the HTTP method.
    :param path: the path, such as ``/v1.0/im/chats/{id}``; it may be percent-encoded already.
    :param path_params: values for the placeholders, each percent-encoded as one path segment.
    :param params: query parameters: texts, numbers and booleans.
    :param json: the body, a dict or a list.
    :param repeatable: whether sending the call twice has the same effect as sending it once.
    :raises InvalidInputError: a parameter cannot be sent; the message names it.
    """
    method = str(method).upper()
    if method not in _METHODS:
        raise InvalidInputError(f"method: {shown(method)} is not one of {', '.join(sorted(_METHODS))}")
    if json is not None and not isinstance(json, (Mapping, list)):
        raise InvalidInputError(
            f"json: a body of type {type(json).__name__} cannot be sent; give a dict or a list"
        )
    filled = _filled(path, path_params)
    call = Call(
        f"{method} {filled}",
        method,
        filled,
        json,
        params,
        repeatable=repeatable,
        kind=kind_of(method, path),
        any_body=True,
    )
    try:
        call.request()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"query parameters or body: they cannot be sent: {error}") from None
    return call


def kind_of(method: str, path: str) -> str:
    """Return a name for all calls of a method and path, without the ids in it: ``GET_contact_users``.

    It holds the words of the path: what is written in camel case, and is neither a placeholder nor a version.

    :param path: with placeholders; an id that is written into it counts as a word if it looks like one.
    """
    return "_".join((method, *filter(_WORD.fullmatch, path.split("/"))))


def _filled(path: object, path_params: object) -> str:
    """Return the path with every placeholder replaced by its value, percent-encoded."""
    values = {} if path_params is None else path_params
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"path_params: expected a dict of values by name, got {shown(path_params)}")
    template = path if isinstance(path, str) else ""
    names = dict.fromkeys(_PLACEHOLDER.findall(template))
    for name in names.keys() - values.keys():
        raise InvalidInputError(
            f"path_params: {shown(name)} is missing, for which the path has a placeholder"
        )
    for name in values.keys() - names.keys():
        raise InvalidInputError(
            f"path_params: the path has no placeholder for {shown(name)}; write it in braces"
        )
    encoded = {name: _encoded(name, values[name]) for name in names}
    filled = _PLACEHOLDER.sub(lambda placeholder: encoded[placeholder[1]], template)
    if not _PATH.fullmatch(filled) or _has_dots(unquote(filled)):
        raise InvalidInputError(
            f"path: {shown(path)} is not a plain absolute path such as /v1.0/conference/orgConferences; "
            "query parameters go into params, and values with other characters into path_params"
        )
    return filled


def _encoded(name: str, value: object) -> str:
    parameter = f"path_params: {shown(name)}"
    text = check_text(parameter, digits_of(value))
    if _has_dots(text):
        raise InvalidInputError(f"{parameter}: {shown(text)} would change the path; dots cannot be a segment")
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{parameter}: it cannot be sent: {error}") from None


def _has_dots(text: str) -> bool:
    """Return whether a server that decodes slashes would find a ``.`` or ``..`` among the segments."""
    return not {".", ".."}.isdisjoint(re.split(r"[/\\]", text))


def _query(params: Mapping[str, Any]) -> dict[str, str]:
    """Return query parameters as texts.

    Lists are refused: DingTalk's SDK sends ``ids.1=a&ids.2=b`` for some calls, a JSON text for others.

    :raises TypeError: they are not a mapping of texts, numbers and booleans.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params is a {type(params).__name__}, not a mapping")
    for name, value in params.items():
        if not isinstance(value, (str, int, float)):
            raise TypeError(f"{shown(name)} is a {type(value).__name__}, not a text, a number or a boolean")
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in params.items()
    }


# Checks of input

_NAMES = (
    "conference_id takes a meeting's conferenceId, room_code a room code as DingTalk shows it, "
    "schedule_conference_id a schedule's scheduleConferenceId"
)


def check_segment(name: str, value: object) -> str:
    """Return a value that names a meeting, if it is one path segment.

    DingTalk's SDK turns a conference id of ``a/../b`` into ``b``; here such a value is refused.

    :param name: its parameter: ``conference_id``, ``room_code`` or ``schedule_conference_id``.
    :raises InvalidConferenceIdError: the value is anything else.
    """
    text = check_text(name, value, InvalidConferenceIdError)
    if len(text) > MAX_CONFERENCE_ID_LENGTH:
        problem = f"it has {len(text)} characters, more than {MAX_CONFERENCE_ID_LENGTH}"
    elif text in {".", ".."}:
        problem = f"{text!r} would change the path of the call"
    elif not _SEGMENT.fullmatch(text):
        wrong = next(char for char in text if not _SEGMENT.fullmatch(char))
        problem = f"{shown(text)} has {wrong!a}, which cannot stand in a {name.replace('_', ' ')}"
    else:
        return text
    raise InvalidConferenceIdError(f"{name}: {problem}; {_NAMES}")


def check_text(name: str, value: object, error: type[InvalidInputError] = InvalidInputError) -> str:
    """Return a text that a template may have rendered.

    :param name: the parameter that has the value.
    :param error: the class of the error.
    :raises InvalidInputError: the value is not a string, or is what a template without a value renders to.
    """
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        problem = "expected a string, got None" if value is None else "it is 'None'"
        if isinstance(value, str) and not value.strip():
            problem = "it is blank" if value else "it is empty"
        raise error(
            f"{name}: {problem}, as a template or XCom without a value renders; check where it comes from"
        )
    if not isinstance(value, str):
        raise error(
            f"{name}: expected a string, got {shown(value)} of type {type(value).__name__}; if it comes from "
            "a template, render_template_as_native_obj=True is the likely cause: quotes in it keep a string"
        )
    return value


def digits_of(value: object) -> object:
    """Return an int as its digits, from which native rendering made it; any other value unchanged."""
    return str(value) if type(value) is int and 0 <= value < 10**18 else value


def shown(value: object) -> str:
    """Return a value for a message, in ASCII and short."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a deep list
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


# Fields of a response

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def text_of(content: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of the named fields of a JSON object that holds a text or a whole number.

    NUL and half of a surrogate pair, as in a text cut within an emoji, are replaced: no database takes them.

    :param content: what DingTalk sent.
    :param names: the names the field may have, in order of preference.
    """
    for name in names:
        value = content.get(name)
        if isinstance(value, str) and value:
            return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        if type(value) is int:  # not a bool
            return str(value)
    return None


def moment_of(content: Mapping[str, Any], name: str) -> datetime | None:
    """Return the moment in a field of milliseconds since the epoch; None if the field holds none, or 0."""
    milliseconds = text_of(content, name) or ""
    if not re.fullmatch("0*[1-9][0-9]{0,14}", milliseconds):
        return None
    try:
        return _EPOCH + timedelta(milliseconds=int(milliseconds))
    except OverflowError:
        return None


def documentation_url(page: str, base_url: str = INTERNATIONAL_HOST) -> str:
    """Return the address of a documentation page.

    :param page: the page's name.
    :param base_url: the host that is called: mainland China has its own documentation site.
    """
    china = base_url.rstrip("/").endswith(".dingtalk.com")
    site = "open.dingtalk.com/document/development" if china else "help.dingtalk.io/open/development"
    return f"https://{site}/{quote(page)}"

"""DingTalk's documented calls as plain values: method, path, body, and the documentation page.

A :class:`Call` says what to ask for. With the access token it becomes a :class:`Request`, the bytes
for the wire; a :class:`Response` is what came back. Nothing here sends anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow_provider_dingconf import __version__
from airflow_provider_dingconf.dingtalk.errors import InvalidConferenceIdError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

INTERNATIONAL_HOST = "https://api.dingtalk.io"
CHINA_HOST = "https://api.dingtalk.com"

# A header's name, and no secret.
TOKEN_HEADER = "x-acs-dingtalk-access-token"  # noqa: S105  # nosec B105
USER_AGENT = f"airflow-provider-dingconf/{__version__}"

LOCK_PAGE = "api-lockconference"
ERROR_CODES_PAGE = "server-api-error-codes-1"

MAX_CONFERENCE_ID_LENGTH = 256

# RFC 3986's characters of a path segment, less "%": what is sent is then what was given.
_SEGMENT = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@]+")
_PATH = re.compile(rf"(/{_SEGMENT.pattern})+")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Call:
    """One call of DingTalk's API.

    :param name: what a log calls it.
    :param method: the HTTP method.
    :param path: the path, beginning with ``/``.
    :param body: the JSON body; None sends none.
    :param params: the query parameters.
    :param page: the name of the call's page in DingTalk's documentation.
    :param with_credentials: whether the call goes with the app's credentials, as the one that fetches a token
        does, and so carries no token.
    :param repeatable: whether sending it twice does no more than sending it once.
    :param confirms: the field of a good answer that is True; None where the call documents none.
    :param any_body: whether a response of success may have any JSON value for its body, or none; otherwise it
        has an object.
    :param read: makes of a good answer's JSON object what is wanted; raises a ResponseError where it holds
        something else.
    """

    name: str
    method: str
    path: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    params: Mapping[str, Any] | None = None
    page: str | None = None
    with_credentials: bool = False
    repeatable: bool = True
    confirms: str | None = None
    any_body: bool = False
    read: Callable[[dict[str, Any]], Any] = field(default=dict, repr=False, compare=False)

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
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class Request:
    """What goes over the wire.

    :param target: path and query, percent-encoded.
    :param content: the body's bytes; None for no body.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Response:
    """What came back.

    :param status: the HTTP status.
    :param headers: the headers, their names in lower case.
    :param content: the body's bytes.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


def _query(params: Mapping[str, Any]) -> dict[str, str]:
    """Return query parameters as texts.

    :raises TypeError: they are no mapping, or one of them is neither a text nor a number nor a boolean.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params is a {type(params).__name__}, not a mapping")
    texts = {}
    for name, value in params.items():
        if not isinstance(value, (str, int, float)):
            raise TypeError(f"{_shown(name)} is a {type(value).__name__}, not a text, a number or a boolean")
        texts[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def text_of(content: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of the named fields of a JSON object that holds a text or a whole number.

    What no database takes is replaced: NUL, and half of a surrogate pair, as in a text cut within an emoji.

    :param content: what DingTalk sent.
    :param names: the names it may have, in order of preference.
    """
    for name in names:
        value = content.get(name)
        if isinstance(value, str) and value:
            return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return None


def moment_of(content: Mapping[str, Any], name: str) -> datetime | None:
    """Return the moment of a field of milliseconds since the epoch; None where it holds none, or 0."""
    milliseconds = text_of(content, name) or ""
    if not re.fullmatch("0*[1-9][0-9]{0,14}", milliseconds):
        return None
    try:
        return _EPOCH + timedelta(milliseconds=int(milliseconds))
    except OverflowError:
        return None


def lock_call(conference_id: str, action: str) -> Call:
    """Return the call that locks or unlocks a meeting.

    Source: `Lock a meeting <https://help.dingtalk.io/open/development/api-lockconference>`__.

    :param conference_id: the meeting's id.
    :param action: ``lock`` or ``unlock``.
    :raises InvalidConferenceIdError: the id is not one path segment.
    :raises InvalidInputError: there is no such action.
    """
    if action not in ("lock", "unlock"):
        raise InvalidInputError(f"action: {_shown(action)} is neither lock nor unlock")
    return Call(
        name=f"{action} {conference_id}",
        method="POST",
        path=f"/v1.0/conference/videoConferences/{check_conference_id(conference_id)}/lock",
        body={"action": action},
        page=LOCK_PAGE,
        confirms="success",
    )


def any_call(
    method: str,
    path: str,
    *,
    params: Mapping[str, Any] | None = None,
    json: Mapping[str, Any] | None = None,
    repeatable: bool = True,
) -> Call:
    """Return any other call, once its method and path are found to be sound.

    :raises InvalidInputError: the method is unknown, the path is not a plain absolute path, or a parameter or
        the body cannot be sent.
    """
    method = str(method).upper()
    if method not in _METHODS:
        raise InvalidInputError(f"method: {method!r} is not one of {', '.join(sorted(_METHODS))}")
    if not isinstance(path, str) or not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise InvalidInputError(
            f"path: {_shown(path)} is not a plain absolute path such as /v1.0/conference/orgConferences; "
            "query parameters go into params"
        )
    call = Call(
        f"{method} {path}", method, path, body=json, params=params, repeatable=repeatable, any_body=True
    )
    try:
        call.request()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"params or json: they cannot be sent: {error}") from None
    return call


def check_conference_id(conference_id: object) -> str:
    """Return the conference id, if it is one path segment.

    DingTalk's SDK turns an id of ``a/../b`` into ``b``: what is not a segment is refused here instead.

    :raises InvalidConferenceIdError: it is anything else.
    """
    return check_segment("conference_id", conference_id)


_WHAT_TO_GIVE = {
    "conference_id": "give the meeting's conferenceId",
    "room_code": "give what DingTalk shows as the meeting's room code",
    "schedule_conference_id": "give the schedule's scheduleConferenceId",
}


def check_segment(name: str, value: object) -> str:
    """Return what names a meeting, if it is one path segment.

    :param name: the parameter it was given as.
    :raises InvalidConferenceIdError: it is anything else.
    """
    problem = _problem_of_segment(name, value)
    if problem:
        raise InvalidConferenceIdError(f"{name}: {problem}; {_WHAT_TO_GIVE[name]}")
    return str(value)


def _problem_of_segment(name: str, value: object) -> str | None:
    if not isinstance(value, str):
        return f"expected a string, got {_shown(value)} of type {type(value).__name__}"
    if not value.strip():
        return "it is empty" if not value else "it is blank"
    if len(value) > MAX_CONFERENCE_ID_LENGTH:
        return f"it has {len(value)} characters, more than {MAX_CONFERENCE_ID_LENGTH}"
    if value in {".", ".."}:
        return f"{value!r} names another path"
    if not _SEGMENT.fullmatch(value):
        wrong = next(char for char in value if not _SEGMENT.fullmatch(char))
        return f"{_shown(value)} has {wrong!a}, which cannot stand in a {name.replace('_', ' ')}"
    return None


def _shown(value: object) -> str:
    """Return the value as it may stand in a message: in ASCII and short."""
    shown = ascii(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def documentation_url(page: str, base_url: str = INTERNATIONAL_HOST) -> str:
    """Return the address of a documentation page, on the site that goes with the host.

    :param page: the page's name.
    :param base_url: the host that is called: mainland China has a documentation site of its own.
    """
    china = base_url.rstrip("/").endswith(".dingtalk.com")
    site = (
        "https://open.dingtalk.com/document/development"
        if china
        else "https://help.dingtalk.io/open/development"
    )
    return f"{site}/{quote(page)}"

"""Calls and responses as plain values, and what can go wrong with a call.

:data:`RESPONSES` has the error responses by name, and a :class:`Fault` says which calls get one. The meetings
of :data:`RESERVED` always behave the same way; ``--help`` and the documentation list them.
"""

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked
from pydantic_core import from_json

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import CredentialsError

REQUEST_ID: Final = "{requestid}"
_DENIED: Final = "Forbidden.AccessDenied.AccessTokenPermissionDenied"


@dataclass
class Call:
    """One call that the sandbox received, unchanged, and the status and error code of its response."""

    name: str  # one of CallName
    method: str
    path: str  # not decoded, with the query
    headers: list[tuple[str, str]]
    body: bytes
    conference_id: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)  # of the path and of the query, decoded
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()).upper())
    time: float = field(default_factory=time.monotonic)  # when it arrived, in seconds
    status: int | None = None  # None: no response yet, or never
    code: str | None = None

    def header(self, name: str) -> str | None:
        """Return the value of a header, in any case; None if it was not sent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """Return the body as JSON; raise ValueError if it is not JSON, or has too many levels."""
        return from_json(self.body)


@dataclass(frozen=True)
class Response:
    """A response.

    :param status: the HTTP status; 0 closes the connection without a response.
    :param body: a JSON value; text and bytes are sent unchanged. ``{requestid}`` becomes the request id.
    :param complete: if False, the connection closes after half the body.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True

    @property
    def code(self) -> str | None:
        """The error code in the body, if any."""
        body = self.body if isinstance(self.body, Mapping) else {}
        code = body.get("code", body.get("errcode"))
        return None if code is None else str(code)

    def sent(self, request_id: str) -> web.Response:
        """Return what the server sends to the call with this request id."""
        raw = isinstance(self.body, (str, bytes))
        body = self.body if raw else json.dumps(self.body, ensure_ascii=False)
        if isinstance(body, str):
            body = body.replace(REQUEST_ID, request_id).encode(errors="replace")
        content_type = f"{'text/html' if raw else 'application/json'}; charset=utf-8"
        headers = {"Content-Type": content_type, **self.headers}
        if self.complete:
            return web.Response(status=self.status, body=body, headers=headers)
        headers["Content-Length"] = str(len(body))
        half = web.Response(status=self.status, body=body[: len(body) // 2], headers=headers)
        half.force_close()
        return half


def error(code: str, message: str | None = None, **details: Any) -> Response:
    """Return an error in DingTalk's form, with the first status that is documented for it."""
    documented = ERRORS[code].http_status if code in ERRORS else ()
    body = {"code": code, "requestid": REQUEST_ID, "message": message or code, **details}
    return Response(next(iter(documented), 400), body)


def denied(scope: str = "Write") -> Response:
    """Return the error for an app that lacks a permission."""
    return error(_DENIED, accessdenieddetail={"requiredScopes": [f"VideoConference.Conference.{scope}"]})


def _old_form(code: int, status: int = 200, **details: Any) -> Response:
    return Response(status, {"errcode": code, "errmsg": str(code), "request_id": REQUEST_ID, **details})


def _page(status: int, title: str, more: str = "", **headers: str) -> Response:
    head = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>"
    return Response(status, f"{head}<body><h1>{title}</h1>{more}</body></html>\n", headers)


UNKNOWN_PATH: Final = _old_form(404, errmsg="请求的URI地址不存在")
_PUNISH: Final = '<script src="/_____tmd_____/punish?x5secdata=sandbox&uuid={requestid}"></script>'
_PLAIN_HTTP: Final = "<p>The plain HTTP request was sent to HTTPS port</p><hr>Powered by tengine"
_BAN: Final = {"status": 1111, "wait": 5, "source": "x5", "punish": "deny", "uuid": REQUEST_ID}

# fmt: off
_NAMED: Final[Mapping[str, tuple[str, Response]]] = {
    # The status of the ban is not documented. Two different ones keep a caller from relying on it.
    "addressBanned": ("The ban of this address, as JSON. A fault can refuse all calls.", Response(200, _BAN)),
    "addressBanned-html": ("The ban, as the firewall's HTML page.", _page(403, "Access denied", _PUNISH)),
    "htmlPage": ("HTTP 400 with a web server's HTML page.", _page(400, "400 Bad Request", _PLAIN_HTTP)),
    "htmlPage-200": ("HTTP 200 with a website's HTML page.", _page(200, "DingTalk Open Platform")),
    "htmlPage-403": ("HTTP 403 with an HTML page that gives no reason.", _page(403, "403 Forbidden")),
    "notConfirmed": ('HTTP 200 with "success": false.', Response(200, {"success": False})),
    "unreadableAnswer": ("HTTP 200 without JSON.", Response(200, "OK", {"Content-Type": "text/plain"})),
    "redirect": ("A redirect to another host.", _page(302, "302 Found", Location="https://dingtalk.invalid/x")),
    "gateway": ("HTTP 502 with the HTML page of a gateway.", _page(502, "502 Bad Gateway")),
    "404-errcode": ("HTTP 200 with errcode 404: an unknown path.", UNKNOWN_PATH),
    "40014-errcode": ("HTTP 200 with errcode 40014: the access token is not valid.", _old_form(40014)),
    "60011-errcode": ("HTTP 200 with sub_code 60011: no permission.", _old_form(88, sub_code="60011")),
    "90020-errcode": ("HTTP 200 with errcode 90020: the month's quota is used up.", _old_form(90020)),
    **{code: (f"HTTP {error(code).status}: {row.meaning}", error(code))
       for code, row in ERRORS.items() if row.sent_by_dingtalk},
    **{f"{code}-errcode": (f"HTTP 400 with errcode: {ERRORS[str(code)].meaning}", _old_form(code, 400))
       for code in range(90002, 90020)},
}
# fmt: on
"""What goes wrong, and the response, by name."""

RESPONSES: Final = {name: response for name, (_, response) in _NAMED.items()} | {_DENIED: denied()}
"""Error responses by name: the error codes DingTalk sends, and what it sends without a code."""

# fmt: off
CallName = Literal["token", "create", "lock", "unlock", "close", "info", "query", "members", "list",
                   "roomCode", "schedule", "other", "stream", "connect", "unknown"]
# fmt: on
"""The names of the calls, which :class:`Fault` describes."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as wrong:
        raise ValueError(f"it is not a regular expression: {wrong}") from None
    return text


_Pattern = Annotated[str, AfterValidator(_pattern)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# RFC 9110, 5.1. The sandbox itself sends the length of the body.
_Header = Annotated[
    str, Field(pattern=r"(?i)^(?!(content-length|transfer-encoding)\Z)[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
]
_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*\Z")]


@checked(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", regex_engine="python-re"))
class Fault:
    """Makes some calls fail or changes their responses. The first fault in force that matches a call applies.

    With neither ``code``, ``status`` nor ``body``, the call gets its usual response, after ``delay``.

    :param call: the name of a call, or ``any``. ``lock`` and ``unlock`` are one DingTalk call with two
        actions, ``other`` is any other documented conference call, ``stream`` obtains the address of an event
        stream, and ``connect`` connects to it.
    :param path: a regular expression to search for in the raw path; None: any path.
    :param sent: a regular expression to search for in the body of the request; None: any body.
    :param times: how many calls it hits; None: all until :meth:`Sandbox.heal`.
    :param duration: seconds for which it is in force; None: until :meth:`Sandbox.heal`.
    :param code: the name of a response, one of :data:`RESPONSES`.
    :param status: the HTTP status, instead of the code's; 200 if there is only a body.
    :param body: the body, instead of the code's (see :class:`Response`).
    :param headers: further headers, such as ``Retry-After``; not those for the body's length.
    :param delay: seconds to wait before the response.
    :param drop: close the connection without a response, or after half of the response given here.
    :param after: let the call take effect first, and change only its response.
    :raises ValueError: a value is not valid.
    """

    call: CallName | Literal["any"] = "any"
    path: _Pattern | None = None
    sent: _Pattern | None = None
    times: Annotated[int, Field(ge=1)] | None = None
    duration: _Seconds | None = None
    code: Literal[tuple(RESPONSES)] | None = None  # type: ignore[valid-type]
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    body: Any = None
    headers: Mapping[_Header, _Line] = field(default_factory=dict)
    delay: _Seconds = 0.0
    drop: bool = False
    after: bool = False

    def hits(self, call: Call) -> bool:
        """Return whether the fault is for this call."""
        if self.call not in ("any", call.name):
            return False
        body = call.body.decode(errors="replace")
        return bool(re.search(self.path or "", call.path) and re.search(self.sent or "", body))

    @property
    def response(self) -> Response | None:
        """The response to send instead of the usual one; None for the usual one."""
        if (self.code, self.status, self.body) == (None, None, None):
            return Response(0) if self.drop else None
        usual = RESPONSES[self.code] if self.code else Response(body={})
        body = usual.body if self.body is None else self.body
        headers = {**usual.headers, **self.headers}
        return Response(self.status or usual.status, body, headers, complete=not self.drop)


Status = Literal["not_started", "started", "ended"]  # of a meeting
SLOW: Final = "sandbox-slow"


@dataclass(frozen=True)
class Reserved:
    """A meeting whose id decides the result of each call for it."""

    rehearses: str  # what happens, for the user
    fault: Fault | None = None  # after ``times`` calls, one call succeeds, and the count starts again
    status: Status = "started"


_REFUSED: Final = {code for code, row in ERRORS.items() if issubclass(row.error, CredentialsError)}
_RESERVED: Final = {
    "open": Reserved("A running meeting: locks and unlocks."),
    "notStarted": Reserved("A meeting that has not started.", status="not_started"),
    "ended": Reserved("A meeting that has ended.", status="ended"),
    "flaky": Reserved("systemError twice, then success, and so on.", Fault(code="systemError", times=2)),
    "answerLost": Reserved(
        "Takes effect, but the connection breaks before the response; the next call succeeds, and so on.",
        Fault(drop=True, after=True, times=1),
    ),
    "connectionLost": Reserved("The connection breaks before the call takes effect.", Fault(drop=True)),
    "slow": Reserved("Succeeds after 5 s; --slow sets another time.", Fault(delay=5.0)),
    # Only a token call gets refused credentials: a wrong password rehearses them.
    **{name: Reserved(what, Fault(code=name)) for name, (what, _) in _NAMED.items() if name not in _REFUSED},
}

RESERVED: Final[Mapping[str, Reserved]] = {f"sandbox-{name}": row for name, row in _RESERVED.items()}
"""The reserved meetings, by id."""


def listing() -> Iterator[tuple[str, str]]:
    """Yield the ids of the reserved meetings and what they rehearse; similar ones share a row."""
    for rehearses, rows in groupby(RESERVED, key=lambda one: RESERVED[one].rehearses):
        ids = list(rows)
        for shown in ids if len(ids) <= 3 else [f"{ids[0]} to {ids[-1]}"]:
            yield shown, rehearses

"""What can go wrong with a call, as plain values: error responses, and the calls that get one.

:data:`RESPONSES` has the error responses by name, and a :class:`Fault` says which calls get one. The meetings
of :data:`RESERVED` always behave the same way; ``--help`` and the documentation list them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS, LOCAL_CODES
from airflow_provider_dingconf.dingtalk.errors import CredentialsError

if TYPE_CHECKING:
    from airflow_provider_dingconf.sandbox.state import Call

# Error responses

REQUEST_ID: Final = "{requestid}"
"""Stands for the request id in the body of a response."""

_OLD_FORM: Final = "-errcode"  # ends the name of a response that has an error's older form
_JSON: Final = "application/json; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"


@dataclass(frozen=True)
class Response:
    """What goes back over the wire.

    :param body: a JSON value; text and bytes are sent unchanged. ``{requestid}`` in it becomes the request
        id of the call.
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

    def payload(self, request_id: str) -> tuple[bytes, dict[str, str]]:
        """Return the body's bytes and all headers, for the call with this request id."""
        if isinstance(self.body, bytes):
            return self.body, {"Content-Type": _HTML, **self.headers}
        raw = isinstance(self.body, str)
        text = self.body if raw else json.dumps(self.body, ensure_ascii=False)
        headers = {"Content-Type": _HTML if raw else _JSON, **self.headers}
        return text.replace(REQUEST_ID, request_id).encode(errors="replace"), headers


NONE: Final = Response(0)
"""Stands for no response: the connection closes."""


def error(code: str, message: str | None = None, **details: Any) -> Response:
    """Return an error in DingTalk's form, with the first status that is documented for it."""
    documented = ERRORS[code].http_status if code in ERRORS else ()
    body = {"code": code, "requestid": REQUEST_ID, "message": message or code, **details}
    return Response(next(iter(documented), 400), body)


def denied(scope: str = "Write") -> Response:
    """Return the error of an app that lacks a permission point."""
    required = {"requiredScopes": [f"VideoConference.Conference.{scope}"]}
    return error("Forbidden.AccessDenied.AccessTokenPermissionDenied", accessdenieddetail=required)


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
_OTHERS: Final[Mapping[str, tuple[str, Response]]] = {
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
}
# fmt: on
"""What the table of error codes does not describe, by name: what it is, and the response."""

RESPONSES: Final[Mapping[str, Response]] = {
    **{code: error(code) for code in ERRORS if code not in LOCAL_CODES},
    **{code + _OLD_FORM: _old_form(int(code), 400) for code in ERRORS if code.isdecimal()},
    "Forbidden.AccessDenied.AccessTokenPermissionDenied": denied(),
    **{name: response for name, (_, response) in _OTHERS.items()},
}
"""Error responses by name: the error codes DingTalk sends, and what it sends without a code."""

# Faults

# fmt: off
CallName = Literal[
    "token", "create", "lock", "unlock", "close", "info", "query", "members", "list", "roomCode", "schedule",
    "other", "stream", "connect", "unknown",
]
# fmt: on
"""The names of the calls, which :class:`Fault` describes."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as wrong:
        raise ValueError(f"it is no regular expression: {wrong}") from None
    return text


def _known(code: str) -> str:
    if code not in RESPONSES:
        raise ValueError(f"the sandbox has no {code!r}; it has {', '.join(RESPONSES)}")
    return code


_Pattern = Annotated[str, AfterValidator(_pattern)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# RFC 9110, 5.1. The sandbox itself sends the length of the body.
_Header = Annotated[
    str, Field(pattern=r"(?i)^(?!(content-length|transfer-encoding)$)[!#$%&'*+\-.^_`|~0-9a-z]+$")
]
_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]


@checked(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", regex_engine="python-re"))
class Fault:
    """Something that goes wrong with some calls. The first one in force that matches a call applies to it.

    With neither ``code``, ``status`` nor ``body`` the call gets its usual response, after ``delay``.

    :param call: the name of a call, or ``any``. ``lock`` and ``unlock`` are one call of DingTalk's with two
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
    :param drop: close the connection without a response, or after half of the one given here.
    :param after: let the call take effect first: only its response goes wrong.
    :raises ValueError: a value is not valid.
    """

    call: CallName | Literal["any"] = "any"
    path: _Pattern | None = None
    sent: _Pattern | None = None
    times: Annotated[int, Field(ge=1)] | None = None
    duration: _Seconds | None = None
    code: Annotated[str, AfterValidator(_known)] | None = None
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    body: Any = None
    headers: Mapping[_Header, _Line] = field(default_factory=dict)
    delay: _Seconds = 0.0
    drop: bool = False
    after: bool = False

    def hits(self, call: Call) -> bool:
        """Return whether the fault is for this call."""
        return (
            self.call in ("any", call.name)
            and (self.path is None or re.search(self.path, call.path) is not None)
            and (self.sent is None or re.search(self.sent, call.body.decode(errors="replace")) is not None)
        )

    @property
    def response(self) -> Response | None:
        """What is sent instead of the usual response; None: that one is sent."""
        if (self.code, self.status, self.body) == (None, None, None):
            return NONE if self.drop else None
        usual = RESPONSES[self.code] if self.code else Response(body={})
        return Response(
            self.status or usual.status,
            usual.body if self.body is None else self.body,
            {**usual.headers, **self.headers},
            complete=not self.drop,
        )


# Meetings that always behave the same way

Status = Literal["not_started", "started", "ended"]
"""Of a meeting."""

SLOW: Final = "sandbox-slow"
_LONG: Final = 3  # a longer run of similar rows is listed as one


@dataclass(frozen=True)
class Reserved:
    """A meeting whose id decides the result of each call for it."""

    conference_id: str
    rehearses: str  # what happens, for the user
    fault: Fault | None = None  # after its ``times`` one call succeeds, and the count begins anew
    status: Status = "started"


def _reserved() -> Iterator[Reserved]:
    yield Reserved("sandbox-open", "A running meeting: locks and unlocks.")
    yield Reserved("sandbox-notStarted", "A meeting that has not started.", status="not_started")
    yield Reserved("sandbox-ended", "A meeting that has ended.", status="ended")
    flaky = Fault(code="systemError", times=2)
    yield Reserved("sandbox-flaky", "systemError twice, then success, and so on.", flaky)
    yield Reserved(
        "sandbox-answerLost",
        "Takes effect, but the connection breaks before the response; the next call succeeds, and so on.",
        Fault(drop=True, after=True, times=1),
    )
    lost = Fault(drop=True)
    yield Reserved("sandbox-connectionLost", "The connection breaks before the call takes effect.", lost)
    yield Reserved(SLOW, "Succeeds after 5 s; --slow sets another time.", Fault(delay=5.0))
    for name, (rehearses, _) in _OTHERS.items():
        yield Reserved(f"sandbox-{name}", rehearses, Fault(code=name))
    for name in [one for one in RESPONSES if one not in _OTHERS]:
        row = ERRORS[name.removesuffix(_OLD_FORM)]
        # Only a token call gets refused credentials: a wrong password rehearses them.
        if not issubclass(row.error, CredentialsError):
            form = "" if name == row.code else " with errcode"
            rehearses = f"HTTP {RESPONSES[name].status}{form}: {row.meaning}"
            yield Reserved(f"sandbox-{name}", rehearses, Fault(code=name))


RESERVED: Final[Mapping[str, Reserved]] = {row.conference_id: row for row in _reserved()}
"""The reserved meetings, by id."""


def listing() -> Iterator[tuple[str, str]]:
    """Yield the reserved meetings for people: ids and what they rehearse; a run of alike ids is one row."""
    for rehearses, rows in groupby(RESERVED.values(), key=lambda row: row.rehearses):
        ids = [row.conference_id for row in rows]
        for shown in ids if len(ids) <= _LONG else [f"{ids[0]} to {ids[-1]}"]:
            yield shown, rehearses

"""What the sandbox answers when it goes wrong, and when it does so: plain values, no I/O."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS

REQUEST_ID: Final = "{requestid}"
"""Stands for the request id in the body of an answer."""

CALLS: Final = (
    "token",
    *("lock", "unlock", "info", "query", "list", "roomCode", "schedule"),
    *("stream", "connect"),
    "unknown",
)
"""The names of calls; ``lock`` and ``unlock`` are one call of DingTalk's with two actions.

``stream`` asks where an event stream is, and ``connect`` connects to it.
"""

ANY: Final = "any"

OLD_FORM: Final = "-errcode"
"""Ends the name of an answer that has an error's older form."""

_JSON: Final = "application/json; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.1
_OWN_HEADERS: Final = ("content-length", "transfer-encoding")  # the sandbox says how long the body is


@dataclass(frozen=True)
class Answer:
    """What goes back over the wire.

    :param body: a JSON value; text and bytes are sent as they are. ``{requestid}`` in it becomes the
        request id of the call.
    :param complete: whether all of it goes out; otherwise the connection closes after half the body.
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
        """Return the body's bytes and all headers for the call with this request id."""
        if isinstance(self.body, bytes):
            return self.body, {"Content-Type": _HTML, **self.headers}
        raw = isinstance(self.body, str)
        text = self.body if raw else json.dumps(self.body, ensure_ascii=False)
        headers = {"Content-Type": _HTML if raw else _JSON, **self.headers}
        return text.replace(REQUEST_ID, request_id).encode(errors="replace"), headers


def error(code: str, status: int | None = None, message: str | None = None) -> Answer:
    """Return an error answer in DingTalk's shape.

    :param status: the first status documented for the code when None; 400 where none is documented.
    :param message: the code itself when None, as DingTalk does for the lock call.
    """
    documented = ERRORS[code].http_status if code in ERRORS else ()
    return Answer(
        status or next(iter(documented), 400),
        {"code": code, "requestid": REQUEST_ID, "message": message or code},
    )


def _page(title: str) -> str:
    return f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"


def _answers() -> dict[str, Answer]:
    answers = {code: error(code) for code, row in ERRORS.items() if row.sent_by_dingtalk}
    for code in filter(str.isdecimal, ERRORS):
        body = {"errcode": int(code), "errmsg": code, "request_id": REQUEST_ID}
        answers[code + OLD_FORM] = Answer(400, body)
    banned = {"status": 1111, "wait": 5, "source": "x5", "punish": "deny", "uuid": REQUEST_ID}
    return answers | {
        # The status of the ban is not documented. Two different ones keep a caller from relying on it.
        "addressBanned": Answer(200, banned),
        "addressBanned-html": Answer(403, _page("Access denied")),
        "notConfirmed": Answer(200, {"success": False}),
        "unreadableAnswer": Answer(200, "OK", {"Content-Type": "text/plain"}),
        "redirect": Answer(302, _page("302 Found"), {"Location": "https://dingtalk.invalid/elsewhere"}),
        "gateway": Answer(502, _page("502 Bad Gateway")),
    }


ANSWERS: Final[Mapping[str, Answer]] = _answers()
"""Wrong answers by name: the error codes DingTalk sends, and what it sends without a code."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with some calls. The first that matches a call applies to it.

    With neither ``code``, ``status`` nor ``body`` the call is answered as usual, after ``delay``.

    :param call: one of :data:`CALLS`, or ``any``.
    :param path: a regular expression to be found in the raw path; None: any path.
    :param sent: a regular expression to be found in the body that was sent; None: any body.
    :param times: how many calls it hits; None: all until :meth:`Sandbox.heal`.
    :param duration: seconds for which it is in force; None: until :meth:`Sandbox.heal`.
    :param code: an answer by name, one of :data:`ANSWERS`.
    :param status: the HTTP status, in place of the code's; 200 where there is only a body.
    :param body: the body, in place of the code's (see :class:`Answer`).
    :param headers: further headers, such as ``Retry-After``; none that says how long the body is.
    :param delay: seconds to wait before answering.
    :param drop: close the connection without an answer; where there is one, after half its body.
    :param after: let the call take effect first: what goes wrong is only the answer.
    """

    call: str = ANY
    path: str | None = None
    sent: str | None = None
    times: int | None = None
    duration: float | None = None
    code: str | None = None
    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    after: bool = False

    def __post_init__(self) -> None:
        """Refuse a fault that cannot be what was meant."""
        for known, complaint in _checks(self):
            if not known:
                raise ValueError(complaint)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fault:
        """Make a fault from the fields of a JSON object.

        :raises ValueError: for unknown fields, or values that make no sense.
        """
        unknown = values.keys() - {known.name for known in fields(cls)}
        if unknown:
            raise ValueError(f"A fault has no {', '.join(sorted(unknown))}.")
        return cls(**values)

    def hits(self, call: str, path: str, sent: bytes = b"") -> bool:
        """Whether the fault is for this call."""
        return (
            self.call in (ANY, call)
            and (self.path is None or re.search(self.path, path) is not None)
            and (self.sent is None or re.search(self.sent, sent.decode(errors="replace")) is not None)
        )

    @property
    def answers(self) -> bool:
        """Whether it puts something in place of the usual answer."""
        return self.drop or self._has_answer

    @property
    def answer(self) -> Answer | None:
        """What is sent in place of the usual answer; None: the connection is closed without one."""
        if not self._has_answer:
            return None
        usual = ANSWERS[self.code] if self.code else Answer(body={})
        return Answer(
            status=self.status or usual.status,
            body=usual.body if self.body is None else self.body,
            headers={**usual.headers, **self.headers},
            complete=not self.drop,
        )

    @property
    def _has_answer(self) -> bool:
        return (self.code, self.status, self.body) != (None, None, None)


def _checks(fault: Fault) -> list[tuple[bool, str]]:
    return [
        (fault.call in (ANY, *CALLS), f"call is one of {', '.join((ANY, *CALLS))}, not {fault.call!r}."),
        (_is_pattern(fault.path), f"path is a regular expression, not {fault.path!r}."),
        (_is_pattern(fault.sent), f"sent is a regular expression, not {fault.sent!r}."),
        (_is_number(fault.times, 1, whole=True), f"times is a number from 1, not {fault.times!r}."),
        (_is_number(fault.duration, 0), f"duration is a number of seconds, not {fault.duration!r}."),
        (
            fault.code is None or fault.code in [*ANSWERS],
            f"{fault.code!r} is no code the sandbox can answer.",
        ),
        (
            fault.status is None or _is_number(fault.status, 200, 599, whole=True),
            f"status is an HTTP status from 200 to 599, not {fault.status!r}.",
        ),
        (
            _is_headers(fault.headers),
            "headers are names and values of one line each, "
            f"other than {' and '.join(_OWN_HEADERS)}, not {fault.headers!r}.",
        ),
        (
            fault.delay is not None and _is_number(fault.delay, 0),
            f"delay is a number of seconds, not {fault.delay!r}.",
        ),
        (fault.drop in (True, False), f"drop is true or false, not {fault.drop!r}."),
        (fault.after in (True, False), f"after is true or false, not {fault.after!r}."),
    ]


def _is_number(value: object, least: float, most: float = sys.float_info.max, *, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    if value is None:
        return True
    return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most


def _is_pattern(value: object) -> bool:
    try:
        return value is None or bool(re.compile(value))  # type: ignore[call-overload]
    except (re.error, TypeError, OverflowError, RecursionError):
        return False


def _is_headers(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and _HEADER_NAME.fullmatch(name)
        and name.lower() not in _OWN_HEADERS
        and isinstance(text, str)
        and text.isprintable()
        for name, text in value.items()
    )

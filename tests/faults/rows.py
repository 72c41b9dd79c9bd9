"""What a call comes to that meets a fault, as a table, and what is the same for all its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    AddressBannedError,
    CallTimeoutError,
    CertificateError,
    ConferenceClosedError,
    ConnectionLostError,
    CredentialsError,
    DingTalkError,
    Outcome,
    ParameterError,
    PermissionDeniedError,
    RefusedError,
    ResponseError,
    ServerError,
    ThrottledError,
    TransientError,
)
from airflow_provider_dingconf.sandbox import Sandbox

from . import fault_proxy
from .fault_proxy import HTML, Fault, Route, http, refusal, says

MARGIN = 20.0
"""Seconds that a busy machine may take over the total time of a call."""

PATIENCE = 120.0
"""Seconds for anything at all on a busy machine."""

QPS = "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi"
QPM = "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi"
THROTTLES = [row for row in ERRORS.values() if row.error is ThrottledError]
YEAR = 365 * 24 * 3600
RETRY_AFTER: dict[str, tuple[str, float | None]] = {
    "of none": ("0", 0.0),
    "of a second": ("1", 1.0),
    "of an hour": ("3600", 3600.0),
    "of a year": (str(YEAR), float(YEAR)),
    "of 400 digits": ("9" * 400, 999_999_999_999.0),
    "in words": ("in a while", None),
    "negative": ("-5", None),
    "with a point": ("1.5", None),
    "empty": ("", None),
    "of a date gone by": (formatdate(0, usegmt=True), 0.0),
    "of no date": ("Wed, 99 Foo 2026 25:61:61 GMT", None),
}
"""Values by name, and the seconds they ask for; None: nothing."""

UNUSUAL = (ConnectionLostError, ResponseError)
"""What is no HTTP is refused, but the libraries draw the line to an unreadable answer in different places."""


@dataclass(frozen=True)
class Row:
    """What a call comes to that always meets a fault.

    :param error: the class of the error, or those it may be.
    :param fault: what goes wrong; None for what only an address can say.
    :param on_token: the class, where the call is the one that fetches a token.
    :param repeated: whether the call is tried again.
    :param retry_after: seconds, or None.
    :param connect_timeout: of the connection, in seconds.
    :param read_timeout: of the connection, in seconds.
    :param max_seconds: of the call.
    :param scheme: of the address; ``refused`` for one where nobody listens.
    :param fresh_token: whether a fresh access token is tried.
    """

    error: type[DingTalkError] | tuple[type[DingTalkError], ...]
    fault: Fault | None = None
    on_token: type[DingTalkError] | None = None
    repeated: bool = True
    retry_after: float | None = None
    connect_timeout: float = 20.0
    read_timeout: float = 20.0
    max_seconds: float = 20.0
    scheme: str = "http"
    fresh_token: bool = False

    @property
    def errors(self) -> tuple[type[DingTalkError], ...]:
        return self.error if isinstance(self.error, tuple) else (self.error,)


def _rows() -> Iterator[tuple[str, Row]]:
    yield "refused", Row(ConnectionLostError, scheme="refused")
    for name, fault in fault_proxy.HANGING_UP.items():
        yield name, Row(ConnectionLostError, fault)
    for name, fault in fault_proxy.SLOW.items():
        # What is dripped faster than the read timeout ends with the call's time.
        read, seconds = (20.0, 1.0) if name in fault_proxy.DRIPPED else (0.3, 20.0)
        yield name, Row(CallTimeoutError, fault, read_timeout=read, max_seconds=seconds)
    for name, fault in fault_proxy.BIG.items():
        yield name, Row(ResponseError, fault)
    for name, fault in {
        **fault_proxy.IN_THE_HEADERS,
        **fault_proxy.BIG_HEADERS,
        **fault_proxy.NO_HTTP,
    }.items():
        yield name, Row(UNUSUAL, fault)
    for name, fault in {**fault_proxy.WRONG_BODIES, **fault_proxy.NOT_CONFIRMED}.items():
        yield name, Row(ResponseError, fault)
    for name, fault in fault_proxy.GATEWAY.items():
        yield name, Row(ServerError, fault)
    for name, fault in fault_proxy.BANS.items():
        yield name, Row(AddressBannedError, fault, repeated=False, retry_after=300)
    yield "bad certificate", Row(CertificateError, scheme="https", repeated=False)
    yield (
        "no TLS",
        Row(ConnectionLostError, Fault((b"HTTP/1.1 400 no\r\n\r\n",), reads=False), scheme="no TLS"),
    )
    yield (
        "silent in place of TLS",
        Row(
            CallTimeoutError,
            fault_proxy.SLOW["silent from the beginning"],
            scheme="no TLS",
            connect_timeout=0.3,
            read_timeout=0.3,
        ),
    )
    refused = {"on_token": CredentialsError, "repeated": False}
    yield "401", Row(AccessTokenError, says(http(401)), fresh_token=True, **refused)
    yield "401 in JSON", Row(AccessTokenError, refusal(401, "whatever"), fresh_token=True, **refused)
    yield (
        "token expired",
        Row(AccessTokenError, refusal(400, "InvalidAuthentication"), fresh_token=True, **refused),
    )
    yield "404 in HTML", Row(RefusedError, says(http(404, HTML)), repeated=False)
    yield "page of another server", Row(ResponseError, says(http(200, HTML)), repeated=False)
    yield "unknown 4xx", Row(RefusedError, refusal(418, "teapot"), **refused)
    yield "paramsError", Row(ParameterError, refusal(400, "paramsError"), repeated=False)
    yield "confClosed", Row(ConferenceClosedError, refusal(400, "confClosed"), repeated=False)
    yield "noPermission", Row(PermissionDeniedError, refusal(403, "noPermission"), repeated=False)
    yield "systemError", Row(ServerError, refusal(500, "systemError"))
    # Throttled: without Retry-After it is the table that says how long to wait.
    for row in THROTTLES:
        status = next(iter(row.http_status), 400)
        for old in [False, True][: 1 + row.code.isdecimal()]:
            once = not row.wait or row.wait < 20
            name = f"{row.code}{' as errcode' if old else ''}"
            yield (
                name,
                Row(ThrottledError, refusal(status, row.code, old=old), retry_after=row.wait, repeated=once),
            )
            fault = refusal(status, row.code, old=old, Retry_After="2")
            yield f"{name}, Retry-After", Row(ThrottledError, fault, retry_after=2)
    for code, status in {QPM: 403, "more": 429, "none": 503}.items():
        kind = ServerError if status == 503 else ThrottledError
        usual = ERRORS[code].wait if code in ERRORS else None
        for name, (value, seconds) in RETRY_AFTER.items():
            fault = refusal(status, code, Retry_After=value)
            wait = usual if seconds is None else seconds
            row = Row(kind, fault, retry_after=wait, repeated=not wait or wait < 20)
            yield f"{code}, Retry-After {name}", row


ROWS = dict(_rows())
ON_THE_TOKEN = [name for name, row in ROWS.items() if "confClosed" not in name]


LASTING = [
    name
    for name in ROWS
    if ", Retry-After" not in name and not name.removesuffix(" as errcode").startswith("9000")
]
"""Rows enough where all are tried at the same time: one for each fault, and not one for each value in it."""


@dataclass
class Case:
    """A row with an address and a meeting of its own.

    :param call: ``lock`` or ``token``: the call that meets the fault.
    """

    row: Row
    call: str
    route: Route
    conn_id: str
    meeting: str

    @property
    def met(self) -> int:
        """How often the fault was met."""
        return len(self.route.hit)


def check(case: Case, error: DingTalkError | None, seconds: float, attempts: int, behind: Sandbox) -> None:
    """Check what a call came to that met the fault each time."""
    row = case.row
    expected = (row.on_token,) if case.call == "token" and row.on_token else row.errors
    assert type(error) in expected, repr(error)
    assert error is not None
    assert error.outcome is (
        Outcome.SKIP
        if isinstance(error, ConferenceClosedError)
        else Outcome.RETRY
        if isinstance(error, TransientError)
        else Outcome.FAIL
    )
    assert seconds <= row.max_seconds + MARGIN
    if not isinstance(error, CallTimeoutError):
        assert error.attempts == (attempts if row.repeated else 1)
    check_calls(case, error)
    if isinstance(error, (ThrottledError, ServerError)):
        assert error.retry_after == row.retry_after
    said = f"{error} {vars(error)}"
    assert Sandbox.client_secret not in said
    assert said.isprintable()
    assert len(said) < 4000
    effect = row.fault is not None and row.fault.takes_effect and case.call == "lock"
    assert behind.conference(case.meeting).locked is effect


def check_calls(case: Case, error: DingTalkError) -> None:
    """Check that the call was made as often as the error says, and no other call in vain."""
    route, fault = case.route, case.row.fault
    # What a client that gave up had sent before may be read later.
    wait_until(lambda: not fault or case.met >= error.attempts)
    if fault is None or not fault.reads:
        assert not route.requests
        assert case.met == (error.attempts if fault else 0)
    elif case.call == "token":
        assert route.count("token") == route.count() == case.met == error.attempts
    elif case.row.fresh_token:
        assert (route.count("lock"), route.count("token"), route.count()) == (2, 2, 4)
    else:
        assert route.count("lock") == route.count() == case.met == error.attempts


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.005)


def check_hung_up(*routes: Route) -> None:
    """Check that the clients have closed their connections."""
    wait_until(lambda: not any(route.open for route in routes))

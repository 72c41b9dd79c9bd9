"""How a call ends that meets a fault: a table, and what is the same for all its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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
from .fault_proxy import HTML, Fault, Route, refusal, responds

MARGIN = 20.0
"""Seconds that a busy machine may take over the total time of a call."""

PATIENCE = 120.0
"""Seconds for anything at all on a busy machine."""

THROTTLES = [row for row in ERRORS.values() if row.error is ThrottledError]
RETRY_AFTER: dict[str, tuple[str, float | None]] = {
    "of none": ("0", 0.0),
    "of a second": ("1", 1.0),
    "of an hour": ("3600", 3600.0),
    "of a year": ("31536000", 31_536_000.0),
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
    """How a call ends that always meets a fault.

    :param error: the class of the error, or those it may be.
    :param fault: what goes wrong; None for what only an address can say.
    :param on_token: the class, where the call is the one that fetches a token.
    :param repeated: whether the call is retried.
    :param retry_after: seconds, or None.
    :param connect_timeout: of the connection, in seconds.
    :param read_timeout: of the connection, in seconds.
    :param max_seconds: of the call.
    :param scheme: of the address; ``refused`` for one where nobody listens.
    :param fresh_token: whether the call is repeated once with a fresh access token.
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


def _rows() -> Iterator[tuple[str, Row]]:
    yield "refused", Row(ConnectionLostError, scheme="refused")
    for error, faults in {
        ConnectionLostError: fault_proxy.HANGING_UP,
        UNUSUAL: {**fault_proxy.IN_THE_HEADERS, **fault_proxy.BIG_HEADERS, **fault_proxy.NO_HTTP},
        ResponseError: {**fault_proxy.BIG, **fault_proxy.WRONG_BODIES, **fault_proxy.NOT_CONFIRMED},
        ServerError: {**fault_proxy.GATEWAY, "systemError": refusal(500, "systemError")},
    }.items():
        for name, fault in faults.items():
            yield name, Row(error, fault)
    for name, fault in fault_proxy.SLOW.items():
        # What is dripped faster than the read timeout ends with the call's time.
        read, seconds = (20.0, 1.0) if name in fault_proxy.DRIPPED else (0.3, 60.0)
        yield name, Row(CallTimeoutError, fault, read_timeout=read, max_seconds=seconds)
    for name, fault in fault_proxy.BANS.items():
        yield name, Row(AddressBannedError, fault, repeated=False, retry_after=300)
    yield "bad certificate", Row(CertificateError, scheme="https", repeated=False)
    no_tls = Fault((b"HTTP/1.1 400 no\r\n\r\n",), reads=False)
    yield "no TLS", Row(ConnectionLostError, no_tls, scheme="no TLS")
    silent, short = (
        fault_proxy.SLOW["silent from the beginning"],
        {"connect_timeout": 0.3, "read_timeout": 0.3},
    )
    yield "silent in place of TLS", Row(CallTimeoutError, silent, scheme="no TLS", **short)
    refused = {"on_token": CredentialsError, "repeated": False}
    for name, fault in {
        "401": responds(401),
        "401 in JSON": refusal(401, "whatever"),
        "token expired": refusal(400, "InvalidAuthentication"),
    }.items():
        yield name, Row(AccessTokenError, fault, fresh_token=True, **refused)
    yield "unknown 4xx", Row(RefusedError, refusal(418, "teapot"), **refused)
    for name, error, fault in (
        ("404 in HTML", RefusedError, responds(404, HTML)),
        ("page of another server", ResponseError, responds(200, HTML)),
        ("paramsError", ParameterError, refusal(400, "paramsError")),
        ("confClosed", ConferenceClosedError, refusal(400, "confClosed")),
        ("noPermission", PermissionDeniedError, refusal(403, "noPermission")),
    ):
        yield name, Row(error, fault, repeated=False)
    # Throttled: without Retry-After the table of codes says how long to wait.
    for row in THROTTLES:
        status = next(iter(row.http_status), 400)
        for old in [False, True][: 1 + row.code.isdecimal()]:
            name = f"{row.code}{' as errcode' if old else ''}"
            yield name, throttled(refusal(status, row.code, old=old), row.wait)
            yield f"{name}, Retry-After", throttled(refusal(status, row.code, old=old, Retry_After="2"), 2)
    for code, status in {
        "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi": 403,
        "more": 429,
        "none": 503,
    }.items():
        usual = ERRORS[code].wait if code in ERRORS else None
        for name, (value, seconds) in RETRY_AFTER.items():
            fault, wait = refusal(status, code, Retry_After=value), usual if seconds is None else seconds
            error = ServerError if status == 503 else ThrottledError
            yield f"{code}, Retry-After {name}", throttled(fault, wait, error)


def throttled(fault: Fault, wait: float | None, error: type[DingTalkError] = ThrottledError) -> Row:
    """Return the row of a call that has 20 seconds, and is to wait."""
    return Row(error, fault, retry_after=wait, repeated=not wait or wait < 20)


ROWS = dict(_rows())
ON_THE_TOKEN = [name for name in ROWS if name != "confClosed"]
LASTING = [
    name
    for name in ROWS
    if ", Retry-After" not in name and not name.removesuffix(" as errcode").startswith("9000")
]
"""The rows that are tried at the same time: one for each fault, and not one for each value in it."""


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

    @property
    def errors(self) -> tuple[type[DingTalkError], ...]:
        """What a call ends in that meets the fault each time."""
        row = self.row
        if self.call == "token" and row.on_token:
            return (row.on_token,)
        return row.error if isinstance(row.error, tuple) else (row.error,)


def check(case: Case, error: DingTalkError | None, seconds: float, attempts: int, behind: Sandbox) -> None:
    """Check the end of a call that met the fault each time."""
    row = case.row
    assert error is not None
    assert type(error) in case.errors, repr(error)
    outcomes = {
        ConferenceClosedError: Outcome.SKIP,
        TransientError: Outcome.RETRY,
        DingTalkError: Outcome.FAIL,
    }
    assert error.outcome is next(outcome for kind, outcome in outcomes.items() if isinstance(error, kind))
    assert seconds <= (row.max_seconds if row.read_timeout > 1 else 9.0) + MARGIN
    if not isinstance(error, CallTimeoutError):
        assert error.attempts == (attempts if row.repeated else 1)
    check_calls(case, error)
    if isinstance(error, (ThrottledError, ServerError)):
        assert error.retry_after == row.retry_after
    shown = f"{error} {vars(error)}"
    assert Sandbox.client_secret not in shown
    assert shown.isprintable()
    assert len(shown) < 4000
    effect = row.fault is not None and row.fault.takes_effect and case.call == "lock"
    assert behind.conference(case.meeting).locked is effect


def check_calls(case: Case, error: DingTalkError) -> None:
    """Check that the call was made as often as the error says, and no other call."""
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


def check_each(names: Iterable[str], check: Callable[[str], object]) -> None:
    """Check what has a name, and fail with all that is wrong."""
    failures = []
    for name in names:
        try:
            check(name)
        except (AssertionError, KeyError) as failed:
            failures.append(f"{name}: {failed!r}")
    assert not failures, "\n".join(failures)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.005)


def check_hung_up(*routes: Route) -> None:
    """Check that the clients have closed their connections."""
    wait_until(lambda: not any(route.open for route in routes))

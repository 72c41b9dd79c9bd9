"""Every fault that a connection can have: which error a call ends in, after how many calls, in what time."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import json
import os
import runpy
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf import token_store
from airflow_provider_dingconf.dingtalk.errors import (
    ERRORS,
    AccessTokenError,
    AddressBannedError,
    AnswerError,
    CallTimeoutError,
    CertificateError,
    ConferenceClosedError,
    ConnectionLostError,
    CredentialsError,
    DingTalkError,
    Outcome,
    ParameterError,
    PermissionDeniedError,
    RedirectError,
    RefusedError,
    ServerError,
    ThrottledError,
    TransientError,
)
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox

from . import fault_proxy
from .conftest import nothing_left_open
from .fault_proxy import FAULTS, GOOD, HTML, MIB, Fault, FaultProxy, Route, http, redirect, refusal, says

if TYPE_CHECKING:
    from conftest import Face

MARGIN = 5.0
"""Seconds that a busy machine may take over the total time of a call."""

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

UNUSUAL = (ConnectionLostError, AnswerError)
"""What is no HTTP is refused, but the libraries draw the line to an unreadable answer in different places."""


@dataclass(frozen=True)
class Row:
    """What a call comes to that always meets a fault.

    :param error: the class of the error, or those it may be.
    :param fault: what goes wrong; None for what only an address can say.
    :param on_token: the class, where the call is the one that buys a token.
    :param repeated: whether the call is tried again.
    :param retry_after: seconds, or None.
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
        yield name, Row(CallTimeoutError, fault, read_timeout=0.3, max_seconds=1.5)
    for name, fault in fault_proxy.BIG.items():
        yield name, Row(AnswerError, fault)
    for name, fault in {
        **fault_proxy.IN_THE_HEADERS,
        **fault_proxy.BIG_HEADERS,
        **fault_proxy.NO_HTTP,
    }.items():
        yield name, Row(UNUSUAL, fault)
    for name, fault in {**fault_proxy.WRONG_BODIES, **fault_proxy.NOT_CONFIRMED}.items():
        yield name, Row(AnswerError, fault)
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
            read_timeout=0.3,
            max_seconds=1.5,
        ),
    )
    refused = {"on_token": CredentialsError, "repeated": False}
    yield "401", Row(AccessTokenError, says(http(401)), fresh_token=True, **refused)
    yield "401 in JSON", Row(AccessTokenError, refusal(401, "whatever"), fresh_token=True, **refused)
    yield (
        "token expired",
        Row(AccessTokenError, refusal(400, "InvalidAuthentication"), fresh_token=True, **refused),
    )
    yield "404 in HTML", Row(RefusedError, says(http(404, HTML)), **refused)
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


@pytest.fixture
def case_of(layer: FaultProxy, behind: Sandbox, connect: Callable[..., None]) -> Callable[..., Case]:
    """Return what gives a row an address and a meeting."""

    def make(
        name: str, call: str, times: int | None = None, fault: Fault | None = None, **changes: Any
    ) -> Case:
        row = replace(ROWS[name], **changes)
        fault = fault or row.fault
        where = "connection" if fault and not fault.reads else call
        faults = itertools.repeat(fault) if times is None else [fault] * times
        route = layer.route({where: faults} if fault else {})
        urls = {
            "http": route.url,
            "https": route.https_url,
            "no TLS": route.url.replace("http:", "https:"),
            "refused": layer.refused_url,
        }
        number = route.url.rpartition(":")[0].rpartition("/")[2].replace(".", "_")
        case = Case(row, call, route, f"fault_{number}", behind.create_conference(name))
        # What is to go wrong with the lock alone needs a token without a call.
        kind = "static_token" if call == "lock" and not row.fresh_token else "internal"
        connect(urls[row.scheme], case.conn_id, kind, timeout=[20, row.read_timeout])
        if row.scheme != "http" and row.max_seconds < 10:
            connect(urls[row.scheme], case.conn_id, kind, timeout=row.read_timeout)
        return case

    return make


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


def lock(face: Face, case: Case, max_attempts: int) -> tuple[DingTalkError | None, float, Any]:
    """Lock the meeting of a case, and return the error, the seconds it took, and the result."""
    hook = face.hook(
        dingtalk_conn_id=case.conn_id, max_attempts=max_attempts, max_seconds=case.row.max_seconds
    )
    began = time.monotonic()
    try:
        result, error = face.do("lock_conference", case.meeting, hook=hook), None
    except DingTalkError as caught:
        result, error = None, caught.with_traceback(None)
    seconds = time.monotonic() - began
    hook.close()
    return error, seconds, result


def check_calls(case: Case, error: DingTalkError) -> None:
    """Check that the call was made as often as the error says, and no other call in vain."""
    route, fault = case.route, case.row.fault
    if fault is None or not fault.reads:
        assert not route.requests
        assert case.met == (error.attempts if fault else 0)
    elif case.call == "token":
        assert route.count("token") == route.count() == case.met == error.attempts
    elif case.row.fresh_token:
        assert (route.count("lock"), route.count("token"), route.count()) == (2, 2, 4)
    else:
        assert route.count("lock") == route.count() == case.met == error.attempts


def check_hung_up(case: Case) -> None:
    """Check that the client has closed its connections."""
    give_up = time.monotonic() + 10
    while case.route.open and time.monotonic() < give_up:
        time.sleep(0.005)
    assert case.route.open == 0


_warm: set[bool] = set()


@pytest.fixture
def warm(face: Face, layer: FaultProxy, connect: Callable[..., None], behind: Sandbox) -> None:
    """See that a call was made before, so that what lives as long as the process is there."""
    if face.awaited not in _warm:
        connect(layer.route().url, "warm")
        hook = face.hook(dingtalk_conn_id="warm")
        face.do("lock_conference", behind.create_conference(), hook=hook)
        hook.close()
        _warm.add(face.awaited)


# One attempt


@pytest.mark.parametrize("name", ROWS)
def test_a_lock_that_meets_a_fault_ends_in_its_error_and_leaves_nothing_open(
    name: str, face: Face, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    case = case_of(name, "lock")
    with nothing_left_open():
        error, seconds, _ = lock(face, case, max_attempts=1)
    check(case, error, seconds, 1, behind)
    check_hung_up(case)


@pytest.mark.parametrize("name", ON_THE_TOKEN)
def test_a_token_call_that_meets_a_fault_ends_in_its_error_and_leaves_nothing_open(
    name: str, face: Face, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    case = case_of(name, "token")
    with nothing_left_open():
        error, seconds, _ = lock(face, case, max_attempts=1)
    check(case, error, seconds, 1, behind)
    check_hung_up(case)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_redirect_is_not_followed_and_nothing_is_left_open(
    status: int, call: str, face: Face, layer: FaultProxy, case_of: Callable[..., Case], warm: None
) -> None:
    elsewhere = layer.route()
    case = case_of("404 in HTML", call, fault=redirect(status, f"{elsewhere.url}/v1.0/x"))
    with nothing_left_open():
        error, _, _ = lock(face, case, max_attempts=3)
    assert type(error) is RedirectError
    assert error.outcome is Outcome.FAIL
    assert case.route.count() == case.route.count(call) == 1
    assert elsewhere.connections == 0


@pytest.mark.parametrize("name", fault_proxy.TOLERABLE)
def test_an_answer_of_a_strange_length_is_read_or_refused(
    name: str, face: Face, case_of: Callable[..., Case], warm: None
) -> None:
    case = case_of("404 in HTML", "lock", fault=FAULTS[name])
    with nothing_left_open():
        error, _, result = lock(face, case, max_attempts=1)
    assert isinstance(error, UNUSUAL) or (error is None and result["success"])
    assert case.route.count() == 1
    check_hung_up(case)


@pytest.mark.parametrize("seconds", [2, 300])
def test_a_date_in_retry_after_is_waited_for(
    seconds: int, face: Face, case_of: Callable[..., Case], behind: Sandbox
) -> None:
    # A date counts whole seconds: the second that has begun is lost.
    date = formatdate(time.time() + seconds + 1, usegmt=True)
    case = case_of("404 in HTML", "lock", times=1, fault=refusal(429, "more", Retry_After=date))
    error, took, result = lock(face, case, max_attempts=2)
    if seconds > case.row.max_seconds:
        assert error is not None
        assert seconds - MARGIN <= (error.retry_after or 0) <= seconds + 1
        assert case.route.count() == 1
    else:
        assert (result["success"], result["attempts"], case.route.count()) == (True, 2, 2)
        assert seconds - 0.1 <= took <= case.row.max_seconds + MARGIN


def test_a_socks_proxy_of_the_environment_is_a_lost_connection(
    face: Face, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("https://dingtalk.invalid", kind="static_token")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(ConnectionLostError):
        face.do("lock_conference", "meeting", hook=face.hook(max_attempts=1))


# What an answer may cost


@pytest.mark.parametrize("name", [*fault_proxy.BIG, *fault_proxy.BIG_HEADERS, "a flood of 100 Continue"])
def test_an_answer_too_big_costs_little_memory(
    name: str, face: Face, case_of: Callable[..., Case], warm: None
) -> None:
    flood = Fault((b"HTTP/1.1 100 Continue\r\n\r\n" * 2000,), endless=True)
    case = case_of("404 in HTML", "lock", fault=FAULTS.get(name, flood), max_seconds=3.0)
    gc.collect()
    tracemalloc.start()
    try:
        error, seconds, _ = lock(face, case, max_attempts=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, (*UNUSUAL, CallTimeoutError))
    assert seconds <= case.row.max_seconds + MARGIN
    assert peak < 8 * MIB
    if name != "a flood of 100 Continue":
        assert case.route.sent < 32 * MIB, "it was read on and on"
    check_hung_up(case)


def test_an_answer_of_1_mib_is_read(face: Face, case_of: Callable[..., Case]) -> None:
    case = case_of("404 in HTML", "lock", fault=says(http(200, GOOD.ljust(MIB))))
    error, _, result = lock(face, case, max_attempts=1)
    assert error is None
    assert result["success"]


# Connections that are kept


def test_no_answer_is_taken_for_that_of_another_call(
    face: Face, layer: FaultProxy, behind: Sandbox, connect: Callable[..., None]
) -> None:
    """An answer with a second one behind it must not make the next call a success."""
    meetings = [behind.create_conference() for _ in range(3)]
    route = layer.route({meetings[0]: [says(http(200, GOOD) + http(200, GOOD))]})
    connect(route.url, kind="static_token")

    def steps(call: Callable[..., Any]) -> Iterator[Any]:
        yield call("lock_conference", meetings[1])
        with suppress(DingTalkError):
            yield call("lock_conference", meetings[0])
        yield call("lock_conference", meetings[2])

    face.run(face.hook(max_attempts=1), _forgiving(steps))
    assert behind.conference(meetings[2]).locked
    assert route.count("lock") == 3


def _forgiving(steps: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Return steps whose calls may fail."""

    async def awaited(want: Any) -> Any:
        with suppress(DingTalkError):
            return await want

    def made(call: Callable[..., Any]) -> Iterator[Any]:
        def forgiven(*args: Any) -> Callable[[], Any]:
            def done() -> Any:
                with suppress(DingTalkError):
                    result = call(*args)()
                    return awaited(result) if inspect.isawaitable(result) else result

            return done

        yield from steps(forgiven)

    return made


@pytest.mark.parametrize(
    "name",
    [
        *(name for name, fault in fault_proxy.HANGING_UP.items() if fault.reads),
        "body without end",
        "gzip bomb",
    ],
)
def test_a_connection_that_broke_is_not_used_again(
    name: str, face: Face, layer: FaultProxy, behind: Sandbox, connect: Callable[..., None]
) -> None:
    meetings = [behind.create_conference() for _ in range(3)]
    route = layer.route({meetings[1]: [FAULTS[name]]})
    connect(route.url, kind="static_token")

    def steps(call: Callable[..., Any]) -> Iterator[Any]:
        for meeting in meetings:
            yield call("lock_conference", meeting)

    face.run(face.hook(max_attempts=1), _forgiving(steps))
    assert [request.conference_id for request in route.requests] == meetings, "a call was repeated"
    assert behind.conference(meetings[0]).locked
    assert behind.conference(meetings[2]).locked


# Several attempts: all faults side by side, in threads and in one event loop

LASTING = [
    name
    for name in ROWS
    if ", Retry-After" not in name and not name.removesuffix(" as errcode").startswith("9000")
]
DRIPPED = {name for name in fault_proxy.SLOW if "dripped" in name or "100" in name}
HEALING = [name for name in LASTING if name not in DRIPPED | {"refused", "bad certificate"}]


def lock_all(
    face: Face, cases: list[Case], max_attempts: int
) -> list[tuple[DingTalkError | None, float, Any]]:
    """Lock the meetings of all cases at the same time."""
    if face.awaited:
        return asyncio.run(_alock_all(cases, max_attempts))
    with ThreadPoolExecutor(max_workers=len(cases)) as threads:
        return list(threads.map(lambda case: lock(face, case, max_attempts), cases))


async def _alock_all(cases: list[Case], max_attempts: int) -> list[tuple[DingTalkError | None, float, Any]]:
    async def lock_one(number: int, case: Case) -> tuple[DingTalkError | None, float, Any]:
        await asyncio.sleep(number * 0.01)  # a hundred beginnings at once are a load of their own
        hook = DingTalkConferenceHook(
            case.conn_id, max_attempts=max_attempts, max_seconds=case.row.max_seconds
        )
        began = time.monotonic()
        try:
            return None, time.monotonic() - began, await hook.alock_conference(case.meeting)
        except DingTalkError as error:
            return error.with_traceback(None), time.monotonic() - began, None

    with _heartbeat() as beats:
        beating = asyncio.ensure_future(_beat(beats))
        try:
            return list(await asyncio.gather(*itertools.starmap(lock_one, enumerate(cases))))
        finally:
            beating.cancel()


@contextmanager
def _heartbeat() -> Iterator[list[float]]:
    """Check that an event loop was held up no longer than this busy machine holds up any thread."""
    beats: list[float] = []
    late = [0.0]
    over = threading.Event()

    def watch() -> None:
        before = time.monotonic()
        while not over.wait(0.02):
            now = time.monotonic()
            late.append(now - before)
            before = now

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield beats
    finally:
        over.set()
        thread.join()
    longest = max((after - before for before, after in itertools.pairwise(beats)), default=0.0)
    assert longest < 2.0 + 3 * max(late), f"the loop stood still for {longest:.1f} s"


async def _beat(beats: list[float]) -> None:
    while True:
        beats.append(time.monotonic())
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_fault_that_lasts_is_met_as_often_as_allowed_and_no_more(
    call: str, face: Face, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    names = [name for name in LASTING if call == "lock" or name in ON_THE_TOKEN]
    cases = [case_of(name, call, max_seconds=3 * ROWS[name].max_seconds) for name in names]
    with nothing_left_open():
        ends = lock_all(face, cases, max_attempts=3)
    failures = []
    for name, case, (error, seconds, _) in zip(names, cases, ends, strict=True):
        try:
            check(case, error, seconds, 3, behind)
            check_hung_up(case)
        except AssertionError as failed:
            failures.append(f"{name}: {failed}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_fault_that_passes_costs_one_call_more(
    call: str, face: Face, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    names = [
        name
        for name in HEALING
        if (ROWS[name].repeated or (ROWS[name].fresh_token and call == "lock"))
        and ROWS[name].scheme == "http"
    ]
    cases = [case_of(name, call, times=1, read_timeout=3.0, max_seconds=60.0) for name in names]
    with nothing_left_open():
        ends = lock_all(face, cases, max_attempts=5)
    failures = []
    for name, case, (error, _, result) in zip(names, cases, ends, strict=True):
        fresh = case.row.fresh_token
        slow = name in fault_proxy.SLOW
        if error is not None or not behind.conference(case.meeting).locked:
            failures.append(f"{name}: {error!r}")
            continue
        attempts = result["attempts"]
        read = case.row.fault is None or case.row.fault.reads
        expected = {"lock": 1, "token": 0 if call == "lock" and not fresh else 1}
        expected[call] += 1 if read else 0
        expected["token"] += fresh
        counted = {kind: case.route.count(kind) for kind in expected}
        if (attempts, counted) != (1 if fresh else 2, expected) and not (slow and attempts > 2):
            failures.append(f"{name}: {attempts} attempts, {counted} calls, not {expected}")
    assert not failures, "\n".join(failures)


# In tasks that Airflow runs

DAG_FILE = '''
"""A task for each of some faults, and a section whose work fails while the unlock meets one."""

import json
import os
import runpy

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.operators import LockConferenceOperator, conference_lock

TASKS = json.loads(os.environ["FAULT_TASKS"])

with DAG("faults", schedule=None, default_args={"retries": 0}) as dag:
    for name, arguments in TASKS["locks"].items():
        LockConferenceOperator(task_id=name, **arguments)

    @task
    def work() -> None:
        raise RuntimeError("the work fails")

    with conference_lock(**TASKS["section"]):
        work()
'''


@dataclass(frozen=True)
class TaskRow:
    """What becomes of a task.

    :param plan: what goes wrong.
    :param calls: lock calls, and token calls.
    :param locked: whether the meeting is locked in the end.
    """

    plan: dict[str, Any]
    state: str
    calls: tuple[int, int]
    locked: bool = False
    scheme: str = "http"
    read_timeout: float = 20.0
    arguments: dict[str, Any] = field(default_factory=dict)


def _always(name: str, call: str = "lock") -> dict[str, Any]:
    return {call: itertools.repeat(FAULTS[name])}


TASK_ROWS = {
    "reset_once": TaskRow({"lock": [FAULTS["reset after reading"]]}, "success", (2, 1), locked=True),
    "answer_lost": TaskRow({"lock": [FAULTS["answer lost by reset"]]}, "success", (2, 1), locked=True),
    "closed_for_ever": TaskRow(
        _always("closed in the body"), "failed", (2, 1), arguments={"max_attempts": 2}
    ),
    "bomb": TaskRow(_always("gzip bomb"), "failed", (2, 1), arguments={"max_attempts": 2}),
    "dripped": TaskRow(_always("body dripped"), "failed", (1, 1), arguments={"max_seconds": 3}),
    "ban": TaskRow(_always("ban in HTML"), "failed", (1, 1)),
    "refused_token": TaskRow({"lock": [refusal(401, "any")]}, "success", (2, 2), locked=True),
    "closed_meeting": TaskRow({"lock": [refusal(400, "confClosed")]}, "skipped", (1, 1)),
    "token_garbage": TaskRow({"token": [FAULTS["garbage"]]}, "success", (1, 2), locked=True),
    "no_token": TaskRow(
        _always("closed after reading", "token"), "failed", (0, 2), arguments={"max_attempts": 2}
    ),
    "certificate": TaskRow({}, "failed", (0, 0), scheme="https"),
    "waits_in_the_triggerer": TaskRow(
        {"lock": [refusal(403, QPM, Retry_After="6")]},
        "success",
        (2, 1),
        locked=True,
        arguments={"deferrable": True},
    ),
}
SECTION = {"unlock": [FAULTS["reset after reading"], FAULTS["503 with HTML"]]}


@dataclass
class Ran:
    """What Airflow made of the DAG."""

    states: dict[str, str]
    routes: dict[str, Route]
    meetings: dict[str, str]


@pytest.fixture(scope="module")
def ran(airflow_db: None, layer: FaultProxy, behind: Sandbox) -> Iterator[Ran]:
    """Run the DAG once, each task over a connection of its own."""
    token_store.forget()
    made = Ran({}, {}, {})
    with pytest.MonkeyPatch.context() as patch:

        def leads(name: str, row: TaskRow) -> dict[str, Any]:
            route = made.routes[name] = layer.route(row.plan)
            made.meetings[name] = behind.create_conference(name)
            url = route.https_url if row.scheme == "https" else route.url
            fields = behind.connection(host=url, extra={"timeout": row.read_timeout})
            patch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
            return {"conference_id": made.meetings[name], "dingtalk_conn_id": name, **row.arguments}

        tasks = {
            "locks": {name: leads(name, row) for name, row in TASK_ROWS.items()},
            "section": leads("section", TaskRow(SECTION, "", (1, 1))),
        }
        patch.setenv("FAULT_TASKS", json.dumps(tasks))
        file = Path(os.environ["AIRFLOW_HOME"]) / "dags" / "faults.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(DAG_FILE)
        run = runpy.run_path(str(file))["dag"].test()
        made.states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    yield made
    token_store.forget()


@pytest.mark.parametrize("name", TASK_ROWS)
def test_a_task_whose_call_meets_a_fault_ends_as_the_table_says(name: str, ran: Ran, behind: Sandbox) -> None:
    row, route = TASK_ROWS[name], ran.routes[name]
    assert ran.states[name] == row.state
    assert (route.count("lock"), route.count("token"), route.count("unlock", "other")) == (*row.calls, 0)
    assert behind.conference(ran.meetings[name]).locked is row.locked


def test_a_teardown_unlocks_after_work_that_failed_through_faults(ran: Ran, behind: Sandbox) -> None:
    assert ran.states["work"] == "failed"
    assert ran.states["unlock_conference"] == "success"
    assert ran.routes["section"].count("unlock") == 3
    assert not behind.conference(ran.meetings["section"]).locked


def test_the_tasks_leave_no_connection_open(ran: Ran) -> None:
    give_up = time.monotonic() + 10
    while any(route.open for route in ran.routes.values()) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert [name for name, route in ran.routes.items() if route.open] == []

"""Every fault that a connection can have: which error a call ends in, after how many calls, in what time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.dingtalk.errors import (
    CallTimeoutError,
    DingTalkError,
    InvalidInputError,
    Outcome,
    RedirectError,
)
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox

from . import fault_proxy
from .conftest import nothing_left_open
from .fault_proxy import FAULTS, GOOD, MIB, Fault, FaultProxy, http, redirect, refusal, says
from .rows import LASTING, MARGIN, ON_THE_TOKEN, ROWS, UNUSUAL, Case, check, check_hung_up

if TYPE_CHECKING:
    from conftest import Face


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


_warm: list[str] = []


@pytest.fixture
def warm(face: Face, layer: FaultProxy, connect: Callable[..., None], behind: Sandbox) -> None:
    """See that a call was made before, so that what lives as long as the process is there."""
    if not _warm:
        connect(layer.route().url, "warm")
        hook = face.hook(dingtalk_conn_id="warm")
        face.do("lock_conference", behind.create_conference(), hook=hook)
        hook.close()
        _warm.append("warm")


# One attempt


@pytest.mark.parametrize("name", ROWS)
def test_a_lock_that_meets_a_fault_ends_in_its_error_and_leaves_nothing_open(
    name: str, face: Face, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    case = case_of(name, "lock")
    with nothing_left_open():
        error, seconds, _ = lock(face, case, max_attempts=1)
    check(case, error, seconds, 1, behind)
    check_hung_up(case.route)


@pytest.mark.parametrize("name", ON_THE_TOKEN)
def test_a_token_call_that_meets_a_fault_ends_in_its_error_and_leaves_nothing_open(
    name: str, face: Face, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    case = case_of(name, "token")
    with nothing_left_open():
        error, seconds, _ = lock(face, case, max_attempts=1)
    check(case, error, seconds, 1, behind)
    check_hung_up(case.route)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", ["lock", "token"])
@pytest.mark.parametrize("endless", [False, True], ids=["a page", "a page without end"])
def test_a_redirect_is_not_followed_and_nothing_is_left_open(
    status: int,
    call: str,
    endless: bool,
    face: Face,
    layer: FaultProxy,
    case_of: Callable[..., Case],
    warm: None,
) -> None:
    elsewhere = layer.route()
    fault = redirect(status, f"{elsewhere.url}/v1.0/x")
    if endless:
        head = http(status, Location=f"{elsewhere.url}/v1.0/x", Content_Length=None)
        fault = Fault((head, b" " * 65536), endless=True)
    case = case_of("404 in HTML", call, fault=fault)
    with nothing_left_open():
        error, _, _ = lock(face, case, max_attempts=3)
    assert type(error) is RedirectError
    assert error.outcome is Outcome.FAIL
    assert case.route.count() == case.route.count(call) == 1
    assert case.route.sent < 32 * MIB, "it was read on and on"
    assert elsewhere.connections == 0
    check_hung_up(case.route)


@pytest.mark.parametrize("name", fault_proxy.TOLERABLE)
def test_a_response_of_a_strange_length_is_read_or_refused(
    name: str, face: Face, case_of: Callable[..., Case], warm: None
) -> None:
    case = case_of("404 in HTML", "lock", fault=FAULTS[name])
    with nothing_left_open():
        error, _, result = lock(face, case, max_attempts=1)
    assert isinstance(error, UNUSUAL) or (error is None and result["success"])
    assert case.route.count() == 1
    check_hung_up(case.route)


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
        assert seconds - 60 <= (error.retry_after or 0) <= seconds + 1
        assert case.route.count() == 1
    else:
        assert (result["success"], result["attempts"], case.route.count()) == (True, 2, 2)
        assert seconds - 0.1 <= took <= case.row.max_seconds + MARGIN


def test_a_socks_proxy_of_the_environment_is_refused_by_the_name_of_its_variable(
    face: Face, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("https://dingtalk.invalid", kind="static_token")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(InvalidInputError, match=r"HTTPS_PROXY.*SOCKS"):
        face.do("lock_conference", "meeting")


# What an answer may cost


@pytest.mark.parametrize("name", [*fault_proxy.BIG, *fault_proxy.BIG_HEADERS, "a flood of 100 Continue"])
def test_a_response_too_big_costs_little_memory(
    name: str, face: Face, case_of: Callable[..., Case], warm: None
) -> None:
    flood = Fault((b"HTTP/1.1 100 Continue\r\n\r\n" * 2000,), endless=True)
    case = case_of(
        "404 in HTML", "lock", fault=FAULTS.get(name, flood), max_seconds=10.0 if name in FAULTS else 1.5
    )
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
    check_hung_up(case.route)


def test_a_response_of_1_mib_is_read(face: Face, case_of: Callable[..., Case]) -> None:
    case = case_of("404 in HTML", "lock", fault=says(http(200, GOOD.ljust(MIB))))
    error, _, result = lock(face, case, max_attempts=1)
    assert error is None
    assert result["success"]


# Connections that are kept


def test_no_response_is_taken_for_that_of_another_call(
    face: Face, layer: FaultProxy, behind: Sandbox, connect: Callable[..., None]
) -> None:
    """An answer with a second one behind it must not make the next call a success."""
    meetings = [behind.create_conference() for _ in range(3)]
    route = layer.route({meetings[0]: [says(http(200, GOOD) + http(200, GOOD))]})
    connect(route.url, kind="static_token")

    face.lock_each([meetings[number] for number in (1, 0, 2)], face.hook(max_attempts=1))
    assert behind.conference(meetings[2]).locked
    assert route.count("lock") == 3


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

    face.lock_each(meetings, face.hook(max_attempts=1))
    assert [request.conference_id for request in route.requests] == meetings, "a call was repeated"
    assert behind.conference(meetings[0]).locked
    assert behind.conference(meetings[2]).locked


# Several attempts: all faults side by side in one event loop

HEALING = [name for name in LASTING if name not in fault_proxy.DRIPPED | {"refused", "bad certificate"}]


async def lock_all(cases: list[Case], max_attempts: int) -> list[tuple[DingTalkError | None, float, Any]]:
    """Lock the meetings of all cases at the same time."""

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
    call: str, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    names = [name for name in LASTING if call == "lock" or name in ON_THE_TOKEN]
    cases = [case_of(name, call, max_seconds=3 * ROWS[name].max_seconds) for name in names]
    with nothing_left_open():
        ends = asyncio.run(lock_all(cases, max_attempts=3))
    failures = []
    for name, case, (error, seconds, _) in zip(names, cases, ends, strict=True):
        try:
            check(case, error, seconds, 3, behind)
            check_hung_up(case.route)
        except AssertionError as failed:
            failures.append(f"{name}: {failed}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_fault_that_passes_costs_one_call_more(
    call: str, case_of: Callable[..., Case], behind: Sandbox, warm: None
) -> None:
    names = [
        name
        for name in HEALING
        if (ROWS[name].repeated or (ROWS[name].fresh_token and call == "lock"))
        and ROWS[name].scheme == "http"
    ]
    cases = [
        case_of(
            name, call, times=1, read_timeout=1.5 if name in fault_proxy.SLOW else 60.0, max_seconds=120.0
        )
        for name in names
    ]
    with nothing_left_open():
        ends = asyncio.run(lock_all(cases, max_attempts=5))
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

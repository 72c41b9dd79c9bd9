"""Every fault that a connection can have: which error a call ends in, after how many calls, in what time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.dingtalk.errors import CallTimeoutError, DingTalkError, Outcome, RedirectError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox

from . import fault_proxy
from .conftest import nothing_left_open
from .fault_proxy import FAULTS, GOOD, MIB, Fault, FaultProxy, http, redirect, refusal, responds
from .rows import LASTING, MARGIN, ON_THE_TOKEN, ROWS, UNUSUAL, Case, check, check_each, check_hung_up

if TYPE_CHECKING:
    from conftest import Face

Ending = tuple[DingTalkError | None, float, Any]
"""The error of a call, the seconds it took, and its result."""


async def alock(case: Case, max_attempts: int) -> Ending:
    """Lock the meeting of a case."""
    hook = DingTalkConferenceHook(case.conn_id, max_attempts=max_attempts, max_seconds=case.row.max_seconds)
    began = time.monotonic()
    try:
        result, error = await hook.alock_conference(case.meeting), None
    except DingTalkError as caught:
        result, error = None, caught.with_traceback(None)
    return error, time.monotonic() - began, result


def lock(case: Case, max_attempts: int = 1) -> Ending:
    """Lock the meeting of a case, and see that this leaves nothing open."""
    with nothing_left_open():
        ending = asyncio.run(alock(case, max_attempts))
    check_hung_up(case.route)
    return ending


@pytest.fixture(autouse=True, scope="module")
def warm(layer: FaultProxy, behind: Sandbox) -> None:
    """Make a call first: some things live as long as the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_WARM", behind.connection_json(host=layer.route().url))
        asyncio.run(DingTalkConferenceHook("warm").alock_conference(behind.create_conference()))


# One attempt


@pytest.mark.parametrize("name", ROWS)
def test_a_lock_that_meets_a_fault_ends_in_its_error_and_leaves_nothing_open(
    name: str, case_of: Callable[..., Case], behind: Sandbox
) -> None:
    case = case_of(name, "lock")
    error, seconds, _ = lock(case)
    check(case, error, seconds, 1, behind)


@pytest.mark.parametrize("name", ON_THE_TOKEN)
def test_a_token_call_that_meets_a_fault_ends_in_its_error_and_leaves_nothing_open(
    name: str, case_of: Callable[..., Case], behind: Sandbox
) -> None:
    case = case_of(name, "token")
    error, seconds, _ = lock(case)
    check(case, error, seconds, 1, behind)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", ["lock", "token"])
@pytest.mark.parametrize("endless", [False, True], ids=["a page", "a page without end"])
def test_a_redirect_is_not_followed_and_nothing_is_left_open(
    status: int, call: str, endless: bool, layer: FaultProxy, case_of: Callable[..., Case]
) -> None:
    elsewhere = layer.route()
    fault = redirect(status, f"{elsewhere.url}/v1.0/x")
    if endless:
        head = http(status, Location=f"{elsewhere.url}/v1.0/x", Content_Length=None)
        fault = Fault((head, b" " * 65536), endless=True)
    case = case_of("404 in HTML", call, fault=fault)
    error, _, _ = lock(case, max_attempts=3)
    assert type(error) is RedirectError
    assert error.outcome is Outcome.FAIL
    assert case.route.count() == case.route.count(call) == 1
    assert case.route.sent < 32 * MIB, "it was read on and on"
    assert elsewhere.connections == 0


@pytest.mark.parametrize("name", [*fault_proxy.TOLERABLE, "1 MiB"])
def test_a_response_of_an_unusual_length_is_read_or_refused(name: str, case_of: Callable[..., Case]) -> None:
    case = case_of("404 in HTML", "lock", fault=FAULTS.get(name, responds(200, GOOD.ljust(MIB))))
    error, _, result = lock(case)
    assert (isinstance(error, UNUSUAL) and name != "1 MiB") or (error is None and result["success"])
    assert case.route.count() == 1


@pytest.mark.parametrize("seconds", [2, 300])
def test_a_date_in_retry_after_is_waited_for(seconds: int, case_of: Callable[..., Case]) -> None:
    # A date counts whole seconds: the second that has begun is lost.
    date = formatdate(time.time() + seconds + 1, usegmt=True)
    case = case_of("404 in HTML", "lock", times=1, fault=refusal(429, "more", Retry_After=date))
    error, took, result = lock(case, max_attempts=2)
    if seconds > case.row.max_seconds:
        assert error is not None
        assert seconds - 60 <= (error.retry_after or 0) <= seconds + 1
        assert case.route.count() == 1
    else:
        assert (result["success"], result["attempts"], case.route.count()) == (True, 2, 2)
        assert seconds - 0.1 <= took <= case.row.max_seconds + MARGIN


# What a response may cost

FLOOD = "a flood of 100 Continue"


@pytest.mark.parametrize("name", [*fault_proxy.BIG, *fault_proxy.BIG_HEADERS, FLOOD])
def test_a_response_too_big_costs_little_memory(name: str, case_of: Callable[..., Case]) -> None:
    fault = FAULTS.get(name, Fault((b"HTTP/1.1 100 Continue\r\n\r\n" * 2000,), endless=True))
    case = case_of("404 in HTML", "lock", fault=fault, max_seconds=1.0 if name == FLOOD else 10.0)
    gc.collect()
    tracemalloc.start()
    try:
        error, seconds, _ = lock(case)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, (*UNUSUAL, CallTimeoutError))
    assert seconds <= case.row.max_seconds + MARGIN
    assert peak < 8 * MIB
    assert name == FLOOD or case.route.sent < 32 * MIB, "it was read on and on"


# Connections that are kept


def lock_three(face: Face, layer: FaultProxy, behind: Sandbox, connect: Any, fault: Fault) -> None:
    """Lock three meetings over one connection if it is kept, of which the second call meets a fault."""
    meetings = [behind.create_conference() for _ in range(3)]
    route = layer.route({meetings[1]: [fault]})
    connect(route.url, kind="static_token")
    face.lock_each(meetings, face.hook(max_attempts=1))
    assert [request.conference_id for request in route.requests] == meetings, "a call was repeated"
    assert behind.conference(meetings[0]).locked
    assert behind.conference(meetings[2]).locked


def test_no_response_is_taken_for_that_of_another_call(
    face: Face, layer: FaultProxy, behind: Sandbox, connect: Callable[..., None]
) -> None:
    """A response with a second one behind it must not make the next call a success."""
    lock_three(face, layer, behind, connect, Fault((http(200, GOOD) * 2,), ends="keep"))


REUSED = [name for name, fault in fault_proxy.HANGING_UP.items() if fault.reads]


@pytest.mark.parametrize("name", [*REUSED, "body without end", "gzip bomb"])
def test_a_connection_that_broke_is_not_used_again(
    name: str, face: Face, layer: FaultProxy, behind: Sandbox, connect: Callable[..., None]
) -> None:
    lock_three(face, layer, behind, connect, FAULTS[name])


# Several attempts: all faults side by side in one event loop


def lock_all(cases: dict[str, Case], max_attempts: int) -> dict[str, Ending]:
    """Lock the meetings of all cases at the same time, and see that none blocks the event loop."""
    pauses = [0.0]

    async def beat() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            pauses.append(time.monotonic() - began)

    async def lock_later(number: int, case: Case) -> Ending:
        await asyncio.sleep(number * 0.01)  # a hundred beginnings at once are another load
        return await alock(case, max_attempts)

    async def all_at_once() -> list[Ending]:
        beating = asyncio.ensure_future(beat())
        try:
            return list(await asyncio.gather(*itertools.starmap(lock_later, enumerate(cases.values()))))
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    with nothing_left_open():
        endings = asyncio.run(all_at_once())
    check_hung_up(*(case.route for case in cases.values()))
    assert max(pauses) < 5, "the event loop stood still"
    return dict(zip(cases, endings, strict=True))


@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_fault_that_lasts_is_met_as_often_as_allowed_and_no_more(
    call: str, case_of: Callable[..., Case], behind: Sandbox
) -> None:
    names = [name for name in LASTING if call == "lock" or name in ON_THE_TOKEN]
    cases = {name: case_of(name, call, max_seconds=3 * ROWS[name].max_seconds) for name in names}
    endings = lock_all(cases, max_attempts=3)

    def check_one(name: str) -> None:
        error, seconds, _ = endings[name]
        check(cases[name], error, seconds, 3, behind)

    check_each(cases, check_one)


@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_fault_that_passes_costs_one_call_more(
    call: str, case_of: Callable[..., Case], behind: Sandbox
) -> None:
    cases = {}
    for name in LASTING:
        row, slow = ROWS[name], name in fault_proxy.SLOW
        passes = row.repeated or (row.fresh_token and call == "lock")
        if passes and row.scheme == "http" and name not in fault_proxy.DRIPPED:
            timeout = 1.5 if slow else 60.0
            cases[name] = case_of(name, call, times=1, read_timeout=timeout, max_seconds=120.0)
    endings = lock_all(cases, max_attempts=5)

    def check_one(name: str) -> None:
        error, _, result = endings[name]
        case, fresh = cases[name], ROWS[name].fresh_token
        assert error is None
        assert behind.conference(case.meeting).locked
        read = case.row.fault is None or case.row.fault.reads
        expected = {"lock": 1, "token": (call == "token" or fresh) + fresh}
        expected[call] += read
        counted = {kind: case.route.count(kind) for kind in expected}
        attempts = result["attempts"]
        if name not in fault_proxy.SLOW or attempts <= 2:  # a busy machine makes a slow one slower
            assert (attempts, counted) == (1 if fresh else 2, expected)

    check_each(cases, check_one)

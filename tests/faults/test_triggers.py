"""Every fault in the triggerer: which wait goes on, which one ends in an error, and that none holds up another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from waiting import QuickTrigger

from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceClosedError,
    DingTalkError,
    ParameterError,
    RefusedError,
    TransientError,
)
from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import nothing_left_open
from .fault_proxy import DRIPPED
from .rows import LASTING, ON_THE_TOKEN, PATIENCE, ROWS, Case, check_each, check_hung_up

INTERVAL = 0.2
LONG = 5.0
"""Seconds: a wait over this is not sat out here."""


def passes(case: Case) -> bool:
    """Return whether the trigger goes on after the fault."""
    of_one_meeting = {ParameterError, ConferenceClosedError, RefusedError}
    if case.row in (ROWS["noPermission"], ROWS["paramsError"]) or of_one_meeting.issuperset(case.errors):
        return True  # of the batch: the meeting is then asked for singly
    if case.call == "other" and case.row.fresh_token:
        return True
    return all(issubclass(error, TransientError) for error in case.errors)


def waits(case: Case) -> bool:
    """Return whether DingTalk asks for a long wait."""
    return passes(case) and (case.row.retry_after or 0.0) > LONG


async def events_of(cases: dict[str, Case]) -> dict[str, Any]:
    """Let a trigger for each case run in this loop, and return the events of those that do not wait for long."""

    async def event(case: Case) -> Any:
        named = {"conference_id": case.meeting}
        trigger = QuickTrigger("started", named, case.conn_id, poke_interval=INTERVAL)
        return (await anext(trigger.run())).payload

    tasks = {name: asyncio.ensure_future(event(case)) for name, case in cases.items()}
    expected = [task for name, task in tasks.items() if not waits(cases[name])]
    await asyncio.wait(expected, timeout=PATIENCE)
    events = {name: task.result() for name, task in tasks.items() if task.done()}
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    return events


@pytest.mark.parametrize("call", ["other", "token"])
def test_a_trigger_that_meets_a_fault_goes_on_waits_as_asked_or_says_what_was_refused(
    call: str, case_of: Callable[..., Case], behind: Sandbox
) -> None:
    names = [
        name
        for name in LASTING
        if name not in DRIPPED
        and (call == "other" or name in ON_THE_TOKEN)
        and (ROWS[name].scheme == "http" or not ROWS[name].repeated)  # the others do not pass
    ]
    cases = {name: case_of(name, call, times=1) for name in names}
    asyncio.run(
        events_of({"warm": case_of("404 in HTML", call, times=0)})
    )  # some things live as long as the process
    with nothing_left_open():
        events = asyncio.run(events_of(cases))

    def check_one(name: str) -> None:
        case, event = cases[name], events.get(name, {})
        if waits(case):
            assert (event, case.met) == ({}, 1)
        elif passes(case) and name != "404 in HTML":  # a page is not of one meeting, but of the host
            assert event.keys() == {"conference"}
            assert event["conference"]["conference_id"] == case.meeting
        else:
            ended = DingTalkError.from_dict(event["error"])
            assert ended.outcome in {error.outcome for error in case.errors}
        assert Sandbox.client_secret not in json.dumps(event)
        check_hung_up(case.route)

    check_each(cases, check_one)

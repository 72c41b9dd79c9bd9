"""The event streams of the sandbox, as a client of DingTalk's Stream mode sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from waiting import until

from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import OPEN, STREAM, Caller, Clock

SOON = 0.05
"""Seconds after which an event that was not acknowledged is delivered again."""
SUITE = {"clientId": Sandbox.suite_key, "clientSecret": Sandbox.suite_secret}


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(redelivery=SOON, clock=clock) as running:
        yield running


def url(caller: Caller, **changes: Any) -> str:
    """Return an address to connect to once."""
    address = caller.call("POST", OPEN, STREAM | changes).json()
    return f"{address['endpoint']}?ticket={quote(address['ticket'])}"


async def connect(url: str) -> int:
    """Return the HTTP status of an attempt to connect."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(url):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status


class Client:
    """A client of an event stream."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def event(self, status: str | None = "SUCCESS") -> tuple[dict[str, Any], Any]:
        """Return the headers and the data of the next event, and acknowledge it with a status, if any."""
        frame = json.loads(await self.socket.receive_str())
        assert frame["type"] == "EVENT"
        if status:
            headers = {"messageId": frame["headers"]["messageId"], "contentType": "application/json"}
            data = json.dumps({"status": status})
            await self.socket.send_json({"code": 200, "headers": headers, "message": "OK", "data": data})
        return frame["headers"], json.loads(frame["data"])


@asynccontextmanager
async def connected(caller: Caller, **changes: Any) -> Any:
    """Connect to an event stream, and wait until the sandbox greets."""
    address = await asyncio.to_thread(url, caller, **changes)
    async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
        assert json.loads(await socket.receive_str())["headers"]["topic"] == "ping"
        yield Client(socket)


async def test_a_ticket_admits_once_until_it_expires_and_no_other_does(clock: Clock, caller: Caller) -> None:
    first, second = [await asyncio.to_thread(url, caller) for _ in range(2)]
    assert first.startswith(f"ws://127.0.0.1:{caller.sandbox.port}/connect?ticket=")
    assert [await connect(first), await connect(first)] == [101, 401]
    clock.now += 90.0
    assert await connect(second) == 401
    for query in ("", "?ticket=", "?ticket=guessed"):
        assert await connect(second.partition("?")[0] + query) == 401


async def test_a_meeting_pushes_each_thing_that_happens_once(sandbox: Sandbox, caller: Caller) -> None:
    meeting = sandbox.create_conference("发布会", status="not_started")
    async with connected(caller) as client:
        for _ in range(2):  # a meeting that runs does not start again
            sandbox.start(meeting)
        sandbox.join(meeting, "first")
        await asyncio.to_thread(caller.lock, meeting)
        assert not sandbox.join(meeting, "latecomer")
        sandbox.leave(meeting, "first")
        for _ in range(2):
            sandbox.end(meeting)
        headers, bodies = zip(*[await client.event() for _ in range(4)], strict=True)
        assert len(sandbox.events) == 4
    scenes = ["conference_created", "user_join", "user_leave", "conference_closed"]
    assert [body["changeScene"] for body in bodies] == scenes
    kinds = ["meeting_status_change", "meeting_member_status_change"]
    assert [one["eventType"] for one in headers] == [kinds[0], kinds[1], kinds[1], kinds[0]]
    assert {one["eventCorpId"] for one in headers} == {sandbox.corp_id}
    models = [bodies[at]["openConfModel"] for at in (0, 3)]
    shown = [(model["conferenceId"], model["title"], model["status"]) for model in models]
    assert shown == [(meeting, "发布会", 2), (meeting, "发布会", 1)]
    (member,) = bodies[1]["openMemberModels"]
    assert (member["conferenceId"], member["userId"]) == (meeting, "first")
    numbers = [body["statusSeqNum"] for body in bodies]
    assert numbers == sorted(set(numbers))


async def test_what_was_not_acknowledged_comes_first_over_the_next_connection(
    sandbox: Sandbox, caller: Caller
) -> None:
    async with connected(caller) as client:
        sandbox.push_event("anything", {"number": 1})
        before, _ = await client.event(None)
    await until(lambda: not sandbox.streams)
    sandbox.push_event("anything", {"number": 2})
    async with connected(caller) as client:
        (first, one), (_, two) = await client.event(), await client.event()
    assert (one["number"], two["number"]) == (1, 2)
    assert first["eventId"] == before["eventId"]
    assert first["messageId"] != before["messageId"]


async def test_an_event_goes_to_one_of_an_apps_connections_once(sandbox: Sandbox, caller: Caller) -> None:
    async with connected(caller) as one, connected(caller) as other:
        for text in ("x", "[]", '{"headers": {"messageId": []}}', "[" * 100_000):
            await one.socket.send_str(text)  # what acknowledges nothing is ignored
        for number in range(4):
            sandbox.push_event("anything", {"number": number})
        numbers = [(await client.event())[1]["number"] for client in (one, other) * 2]
        assert sorted(numbers) == [0, 1, 2, 3]
        await until(lambda: all(event.acknowledged for event in sandbox.events))
        await asyncio.sleep(3 * SOON)
        assert {event.deliveries for event in sandbox.events} == {1}


async def test_each_app_gets_its_own_events(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.push_event("before anyone asked", {})
    async with connected(caller) as internal, connected(caller, **SUITE) as suite:
        assert sandbox.renew_suite_ticket() == sandbox.suite_ticket != Sandbox.suite_ticket
        sandbox.push_event("anything", {})
        assert (await internal.event())[0]["eventType"] == "anything"
        (kind, ticket), (other, _) = await suite.event(), await suite.event()
        assert (kind["eventType"], other["eventType"]) == ("suite_ticket", "anything")
        assert ticket == {"suiteTicket": sandbox.suite_ticket}


@pytest.mark.parametrize("politely", [True, False])
async def test_a_connection_is_closed_as_asked(sandbox: Sandbox, caller: Caller, politely: bool) -> None:
    async with connected(caller) as client:
        sandbox.disconnect_streams(politely=politely)
        topics = [json.loads(message.data)["headers"]["topic"] async for message in client.socket]
        assert topics == (["disconnect"] if politely else [])
        await until(lambda: not sandbox.streams)


async def test_another_process_pushes_events_and_sees_no_secret(sandbox: Sandbox, caller: Caller) -> None:
    event = {"event_type": "suite_ticket_like", "data": {"suiteTicket": "fresh"}, "event_id": "one"}
    async with connected(caller) as client:
        pushed = await asyncio.to_thread(caller.control, "POST", "/events", event)
        assert pushed.json() == {"event_id": "one"}
        await client.event()
        await until(lambda: sandbox.events[0].acknowledged)
        shown = (await asyncio.to_thread(caller.control, "GET", "/events")).json()
        assert shown["connections"] == 1
        (one,) = shown["events"]
        assert (one["app"], one["event_id"], one["acknowledged"]) == (Sandbox.client_id, "one", True)
        assert one["data"] == {"suiteTicket": "***"}
        await asyncio.to_thread(caller.control, "POST", "/streams/disconnect", {"politely": False})
        await until(lambda: not sandbox.streams)
    calls = (await asyncio.to_thread(caller.control, "GET", "/calls")).text
    assert '"connect"' in calls
    ticket = sandbox.calls_of("connect")[0].parameters["ticket"]
    assert not [secret for secret in (ticket, Sandbox.client_secret) if secret in calls]

"""The event streams of the sandbox, as a client of DingTalk's Stream mode sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from airflow_provider_dingconf.sandbox import Fault, Sandbox
from sandbox.conftest import Caller, Clock, code

OPEN = "/v1.0/gateway/connections/open"
ALL_EVENTS = [{"type": "EVENT", "topic": "*"}]
PATIENCE = 120.0
SOON = 0.2
"""Seconds after which an event that was not acknowledged comes again."""


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(redelivery=SOON, clock=clock) as running:
        yield running


def ask(caller: Caller, **changes: Any) -> Any:
    """Ask for a connection."""
    body = {
        "clientId": Sandbox.client_id,
        "clientSecret": Sandbox.client_secret,
        "subscriptions": ALL_EVENTS,
        "ua": "test",
    }
    return caller.call("POST", OPEN, {**body, **changes})


class Client:
    """A client of an event stream."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def frame(self) -> dict[str, Any]:
        """Return the next message, pings left out."""
        while True:
            frame: dict[str, Any] = json.loads(await self.socket.receive_str(timeout=PATIENCE))
            if frame["headers"]["topic"] != "ping":
                return frame

    async def event(self, status: str | None = "SUCCESS") -> dict[str, Any]:
        """Return the next event, and answer it so."""
        frame = await self.frame()
        assert frame["type"] == "EVENT"
        if status:
            headers = {"messageId": frame["headers"]["messageId"], "contentType": "application/json"}
            data = json.dumps({"status": status})
            answer = {"code": 200, "headers": headers, "message": "OK", "data": data}
            await self.socket.send_str(json.dumps(answer))
        return frame


@asynccontextmanager
async def connected(caller: Caller, **changes: Any) -> Any:
    """Connect to an event stream, and wait until the sandbox knows."""
    answer = (await asyncio.to_thread(ask, caller, **changes)).json()
    async with aiohttp.ClientSession() as session:
        url = f"{answer['endpoint']}?ticket={quote(answer['ticket'])}"
        async with session.ws_connect(url) as socket:
            assert json.loads(await socket.receive_str(timeout=PATIENCE))["headers"]["topic"] == "ping"
            yield Client(socket)


def drive(steps: Callable[[], Awaitable[object]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), PATIENCE))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_credentials_get_an_endpoint_and_a_ticket(sandbox: Sandbox, caller: Caller) -> None:
    answer = ask(caller)
    assert answer.status_code == 200
    assert answer.json()["endpoint"] == f"ws://127.0.0.1:{sandbox.port}/connect"
    assert answer.json()["ticket"] != ask(caller).json()["ticket"]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"clientSecret": "wrong"}, (401, "authFailed")),
        ({"clientId": "nobody"}, (401, "authFailed")),
        ({"clientId": None}, (400, "MissingclientId")),
        ({"clientSecret": None}, (400, "MissingclientSecret")),
        ({"subscriptions": None}, (400, "Missingsubscriptions")),
    ],
    ids=str,
)
def test_wrong_and_missing_credentials_get_none(
    caller: Caller, changes: Any, refusal: tuple[int, str]
) -> None:
    assert code(ask(caller, **changes)) == refusal


def connect(url: str) -> int:
    """Return the HTTP status of an attempt to connect."""

    async def attempt() -> int:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.ws_connect(url):
                    return 101
            except aiohttp.WSServerHandshakeError as error:
                return error.status

    return asyncio.run(attempt())


def test_a_ticket_lets_in_once_until_it_expires(clock: Clock, caller: Caller) -> None:
    first, second = ask(caller).json(), ask(caller).json()
    urls = [f"{answer['endpoint']}?ticket={answer['ticket']}" for answer in (first, second)]
    assert [connect(urls[0]), connect(urls[0])] == [101, 401]
    clock.now += 90.0
    assert connect(urls[1]) == 401


@pytest.mark.parametrize("query", ["", "?ticket=", "?ticket=guessed"])
def test_a_ticket_cannot_be_guessed(sandbox: Sandbox, query: str) -> None:
    assert connect(f"ws://127.0.0.1:{sandbox.port}/connect{query}") == 401


def test_a_connection_goes_through_a_fault(sandbox: Sandbox, caller: Caller) -> None:
    sandbox.fail(Fault(call="stream", code="systemError", times=1))
    sandbox.fail(Fault(call="connect", status=503, times=1))
    assert code(ask(caller)) == (500, "systemError")
    answer = ask(caller).json()
    url = f"{answer['endpoint']}?ticket={answer['ticket']}"
    assert [connect(url), connect(url)] == [503, 101]


def test_a_meeting_that_starts_and_ends_says_so(sandbox: Sandbox, caller: Caller) -> None:
    async def steps() -> None:
        async with connected(caller) as client:
            meeting = sandbox.create_conference("发布会")
            sandbox.end(meeting)
            frames = [await client.event(), await client.event()]
            models = [json.loads(frame["data"])["openConfModel"] for frame in frames]
            scenes = [json.loads(frame["data"])["changeScene"] for frame in frames]
            assert scenes == ["conference_created", "conference_closed"]
            assert {frame["headers"]["eventType"] for frame in frames} == {"meeting_status_change"}
            assert {frame["headers"]["eventCorpId"] for frame in frames} == {sandbox.corp_id}
            assert [(model["conferenceId"], model["title"]) for model in models] == [(meeting, "发布会")] * 2
            assert [model["status"] for model in models] == [2, 1]
            numbers = [json.loads(frame["data"])["statusSeqNum"] for frame in frames]
            assert numbers == sorted(numbers)

    drive(steps)


def test_who_joins_a_meeting_is_told_and_who_is_refused_is_not(sandbox: Sandbox, caller: Caller) -> None:
    async def steps() -> None:
        meeting = sandbox.create_conference()
        async with connected(caller) as client:
            sandbox.join(meeting, "first")
            await asyncio.to_thread(caller.lock, meeting)
            sandbox.join(meeting, "latecomer")
            sandbox.leave(meeting, "first")
            sandbox.end(meeting)
            joined, left, ended = [await client.event(), await client.event(), await client.event()]
            assert json.loads(left["data"])["changeScene"] == "user_leave"
            assert joined["headers"]["eventType"] == "meeting_member_status_change"
            data = json.loads(joined["data"])
            assert data["changeScene"] == "user_join"
            assert [(one["conferenceId"], one["userId"]) for one in data["openMemberModels"]] == [
                (meeting, "first")
            ]
            assert json.loads(ended["data"])["changeScene"] == "conference_closed"

    drive(steps)


def test_a_meeting_that_runs_already_does_not_start_again(sandbox: Sandbox, caller: Caller) -> None:
    async def steps() -> None:
        meeting = sandbox.create_conference(status="not_started")
        async with connected(caller) as client:
            sandbox.start(meeting)
            sandbox.start(meeting)
            sandbox.end(meeting)
            sandbox.end(meeting)
            scenes = [json.loads((await client.event())["data"])["changeScene"] for _ in range(2)]
            assert scenes == ["conference_created", "conference_closed"]
            assert len(sandbox.events) == 2

    drive(steps)


def test_an_acknowledged_event_does_not_come_again(sandbox: Sandbox, caller: Caller) -> None:
    async def steps() -> None:
        async with connected(caller) as client:
            sandbox.push_event("anything", {"a": 1})
            await client.event()
            await until(lambda: sandbox.events[0].acknowledged)
            await asyncio.sleep(3 * SOON)
            assert sandbox.events[0].deliveries == 1

    drive(steps)


@pytest.mark.parametrize("status", ["LATER", None])
def test_an_event_put_off_or_not_acknowledged_comes_again_as_another_message(
    sandbox: Sandbox, caller: Caller, status: str | None
) -> None:
    async def steps() -> None:
        async with connected(caller) as client:
            event_id = sandbox.push_event("anything", {})
            first, second = [await client.event(status), await client.event()]
            assert first["headers"]["eventId"] == second["headers"]["eventId"] == event_id
            assert first["headers"]["messageId"] != second["headers"]["messageId"]
            await until(lambda: sandbox.events[0].acknowledged)
            assert sandbox.events[0].acknowledgements == [*([status] if status else []), "SUCCESS"]

    drive(steps)


@pytest.mark.parametrize("text", ["x", "[]", '{"headers": {"messageId": []}}', "[" * 100_000])
def test_an_answer_to_nothing_is_left_alone(sandbox: Sandbox, caller: Caller, text: str) -> None:
    async def steps() -> None:
        async with connected(caller) as client:
            await client.socket.send_str(text)
            sandbox.push_event("anything", {})
            await client.event()
            await until(lambda: sandbox.events[0].acknowledged)

    drive(steps)


def test_what_a_closed_connection_did_not_acknowledge_comes_first_over_the_next(
    sandbox: Sandbox, caller: Caller
) -> None:
    async def steps() -> None:
        async with connected(caller) as client:
            sandbox.push_event("anything", {"number": 1})
            await client.event(None)
        await until(lambda: not sandbox.streams)
        sandbox.push_event("anything", {"number": 2})
        async with connected(caller) as client:
            numbers = [json.loads((await client.event())["data"])["number"] for _ in range(2)]
            assert numbers == [1, 2]

    drive(steps)


def test_an_event_goes_to_one_of_an_apps_connections(sandbox: Sandbox, caller: Caller) -> None:
    async def steps() -> None:
        async with connected(caller) as one, connected(caller) as other:
            for number in range(4):
                sandbox.push_event("anything", {"number": number})
            numbers = [json.loads((await client.event())["data"])["number"] for client in (one, other) * 2]
            assert sorted(numbers) == [0, 1, 2, 3]
            await until(lambda: all(event.acknowledged for event in sandbox.events))

    drive(steps)


def test_each_app_gets_its_own_copy_and_only_a_third_party_app_suite_tickets(
    sandbox: Sandbox, caller: Caller
) -> None:
    third_party = {"clientId": Sandbox.suite_key, "clientSecret": Sandbox.suite_secret}

    async def steps() -> None:
        async with connected(caller) as internal, connected(caller, **third_party) as suite:
            sandbox.push_event("suite_ticket", {"suiteTicket": "fresh"})
            sandbox.push_event("anything", {})
            assert (await internal.event())["headers"]["eventType"] == "anything"
            types = {(await suite.event())["headers"]["eventType"] for _ in range(2)}
            assert types == {"anything", "suite_ticket"}

    drive(steps)


def test_an_app_that_never_asked_for_events_is_kept_none(sandbox: Sandbox, caller: Caller) -> None:
    async def steps() -> None:
        sandbox.push_event("anything", {})
        async with connected(caller) as client:
            sandbox.push_event("wanted", {})
            assert (await client.event())["headers"]["eventType"] == "wanted"

    drive(steps)


@pytest.mark.parametrize("politely", [True, False])
def test_a_connection_is_closed_with_and_without_a_word(
    sandbox: Sandbox, caller: Caller, politely: bool
) -> None:
    async def steps() -> None:
        async with connected(caller) as client:
            sandbox.disconnect_streams(politely=politely)
            topics = [json.loads(message.data)["headers"]["topic"] async for message in client.socket]
            assert topics == (["disconnect"] if politely else [])
            await until(lambda: not sandbox.streams)

    drive(steps)


def test_another_process_pushes_events_and_sees_what_became_of_them(sandbox: Sandbox, caller: Caller) -> None:
    async def steps() -> None:
        async with connected(caller) as client:
            pushed = await asyncio.to_thread(
                caller.control,
                "POST",
                "/events",
                {"event_type": "suite_ticket_like", "data": {"suiteTicket": "fresh"}, "event_id": "one"},
            )
            assert pushed.json() == {"event_id": "one"}
            await client.event()
            await until(lambda: sandbox.events[0].acknowledged)
            shown = (await asyncio.to_thread(caller.control, "GET", "/events")).json()
            assert shown["connections"] == 1
            (event,) = shown["events"]
            assert (event["app"], event["event_id"], event["acknowledged"]) == (
                Sandbox.client_id,
                "one",
                True,
            )
            assert event["data"] == {"suiteTicket": "***"}
            await asyncio.to_thread(caller.control, "POST", "/streams/disconnect", {"politely": False})
            await until(lambda: not sandbox.streams)

    drive(steps)


def test_a_wrong_event_is_told_what_is_wrong(caller: Caller) -> None:
    for body in ({}, {"event_type": ""}, {"event_type": "a", "data": []}, {"kind": "a"}):
        assert caller.control("POST", "/events", body).status_code == 400


def test_a_secret_of_a_stream_is_in_no_record_of_a_screen(sandbox: Sandbox, caller: Caller) -> None:
    ticket = ask(caller).json()["ticket"]
    connect(f"ws://127.0.0.1:{sandbox.port}/connect?ticket={ticket}")
    shown = caller.control("GET", "/calls").text
    assert '"connect"' in shown
    assert ticket not in shown
    assert Sandbox.client_secret not in shown

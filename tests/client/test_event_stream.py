"""An app's event stream, as its watchers see it, against the sandbox."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="events are for Airflow 3")

from aiohttp import WSMsgType, web
from conftest import CONN_VARIABLE
from streams import acknowledged, connect, drive
from waiting import until

from airflow_provider_dingconf.client import event_stream as stream
from airflow_provider_dingconf.client import shared_files, token_cache
from airflow_provider_dingconf.client.event_stream import Delivery, StreamOptions, Watch
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

SOON = 0.3
"""Seconds after which the sandbox delivers an event again."""

DEFAULT = "dingtalk_default"

QUICK = StreamOptions(
    join=(0.05, 1.0), wait=(0.02, 0.1), refused=(0.05, 60.0), restart=0.1, jitter=lambda _least: 1.0
)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(redelivery=SOON) as running:
        yield running


@pytest.fixture(autouse=True)
def connected(conn: Any) -> None:
    """Point the default connection to the sandbox."""


class Watcher:
    """A watcher that keeps what it gets.

    :param takes: whether it acknowledges each event at once.
    :param fires: whether an event starts something.
    :param options: of the stream, other than the quick ones.
    """

    def __init__(
        self,
        conn_id: str = DEFAULT,
        *,
        takes: bool = True,
        fires: bool = True,
        connect: Any = connect,
        **options: Any,
    ) -> None:
        self.deliveries: list[Delivery] = []
        self.watch = Watch(conn_id, connect, replace(QUICK, **options))
        self.task = asyncio.ensure_future(self._run(takes, fires))

    async def _run(self, takes: bool, fires: bool) -> None:
        async for delivery in self.watch.deliveries():
            self.deliveries.append(delivery)
            if fires:
                delivery.fired.add(self)
            if takes:
                self.watch.acknowledge(delivery)

    def acknowledge(self, number: int) -> None:
        self.watch.acknowledge(self.deliveries[number])

    @property
    def titles(self) -> list[str | None]:
        return [event.title for delivery in self.deliveries for event in delivery.events]

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def watching(sandbox: Sandbox | None, *conn_ids: str, **options: Any) -> AsyncIterator[list[Watcher]]:
    """Watch over each of the connections, from when the sandbox has the stream until it is closed again.

    :param sandbox: None to begin before there is a stream.
    """
    watchers = [Watcher(conn_id, **options) for conn_id in conn_ids or (DEFAULT,)]
    try:
        if sandbox:
            await until(lambda: sandbox.streams)
        yield watchers
    finally:
        for watcher in watchers:
            await watcher.stop()
    if sandbox:
        await until(lambda: not sandbox.streams)
        assert not stream._streams


def push(sandbox: Sandbox, event_id: str = "e1", **options: Any) -> None:
    """Push the event of a meeting that starts."""
    data = {"openConfModel": {"conferenceId": "c1", "title": "Meeting"}, "changeScene": "conference_created"}
    sandbox.push_event("meeting_status_change", data, event_id=event_id, **options)


async def push_until_acknowledged(sandbox: Sandbox, event_id: str) -> None:
    push(sandbox, event_id)
    await until(lambda: acknowledged(sandbox))


# Events, and who gets them


async def test_each_watcher_sees_every_event_of_its_organisation_over_one_connection(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OF_ONE", sandbox.connection_json("unified"))
    async with watching(sandbox, DEFAULT, DEFAULT, "of_one") as watchers:
        meeting = sandbox.create_conference("Release")
        sandbox.join(meeting, "somebody")
        sandbox.end(meeting)
        push(sandbox, corp_id="another")
        await until(lambda: len(watchers[0].deliveries) == 4 and acknowledged(sandbox))
        scenes = [[each.events[0].scene for each in one.deliveries] for one in watchers]
        own = ["conference_created", "user_join", "conference_closed"]
        assert scenes == [[*own, "conference_created"]] * 2 + [own]
        assert [event.acknowledgements for event in sandbox.events] == [["SUCCESS"]] * 4
        assert len(sandbox.calls_of("connect")) == 1


async def test_an_event_that_names_no_meeting_is_acknowledged_with_one_warning(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(sandbox) as (watcher,):
        sandbox.push_event("chat_update_title", {"title": "x"})
        for _ in range(3):
            model = {"confId": "c1", "title": "a private title"}
            sandbox.push_event("meeting_status_change", {"openConfModel": model, "odd\ud83d": 1})
        await until(lambda: len(sandbox.events) == 4 and acknowledged(sandbox))
        assert watcher.deliveries == []
    assert caplog.text.count("names no meeting") == 1
    said = "meeting_status_change names no meeting and is ignored; it holds"
    assert f"{said} {{'openConfModel': ['confId', 'title'], 'odd\\ud83d': ''}}" in caplog.text
    assert "private" not in caplog.text


# Acknowledgements


async def test_an_event_is_acknowledged_once_all_have_taken_it(sandbox: Sandbox) -> None:
    async with watching(sandbox, DEFAULT, DEFAULT, takes=False) as (one, other):
        sandbox.create_conference()
        await until(lambda: one.deliveries and other.deliveries)
        one.acknowledge(0)
        await until(lambda: sandbox.events[0].deliveries >= 3)
        assert not acknowledged(sandbox)
        other.acknowledge(0)
        await until(lambda: acknowledged(sandbox))
        assert [len(each.deliveries) for each in (one, other)] == [1, 1]


@pytest.mark.parametrize("leaves", [False, True], ids=["refuses it", "leaves"])
async def test_an_event_comes_again_if_one_of_its_watchers(sandbox: Sandbox, leaves: bool) -> None:
    async with watching(sandbox, DEFAULT, DEFAULT, takes=False) as (one, other):
        sandbox.create_conference()
        await until(lambda: one.deliveries and other.deliveries)
        other.acknowledge(0)
        if leaves:
            await one.stop()
        else:
            one.watch.refuse(one.deliveries[0])
        left = [other] if leaves else [one, other]
        await until(lambda: all(len(each.deliveries) == 2 for each in left))
        for each in left:
            each.acknowledge(1)
        await until(lambda: acknowledged(sandbox))
        assert sandbox.events[0].acknowledgements == ["LATER", "SUCCESS"]


async def test_an_event_just_after_a_watcher_left_comes_again_when_it_is_back(sandbox: Sandbox) -> None:
    async with watching(sandbox, DEFAULT, DEFAULT, restart=0.5) as (one, other):
        await one.stop()
        sandbox.create_conference()
        await until(lambda: other.deliveries)
        async with watching(None) as (back,):
            await until(lambda: back.deliveries and acknowledged(sandbox))


async def test_too_many_events_at_once_come_again_later(sandbox: Sandbox) -> None:
    async with watching(sandbox, takes=False, max_open=2) as (watcher,):
        for number in range(3):
            sandbox.create_conference(str(number))
        await until(lambda: ["LATER"] in [event.acknowledgements[:1] for event in sandbox.events])
        for number in range(3):
            await until(lambda number=number: len(watcher.deliveries) > number)
            watcher.acknowledge(number)
        await until(lambda: acknowledged(sandbox))


# What is kept, also across restarts


async def test_an_event_that_starts_nothing_is_not_remembered(sandbox: Sandbox) -> None:
    async with watching(sandbox, fires=False) as (watcher,):
        await push_until_acknowledged(sandbox, "e1")
        await push_until_acknowledged(sandbox, "e1")
        assert len(watcher.deliveries) == 2
    assert not list(token_cache.default_directory().glob("*.events"))


@pytest.mark.parametrize("shared", [True, False], ids=["in a file", "in memory"])
def test_events_taken_as_the_watcher_ends_are_remembered(sandbox: Sandbox, conn: Any, shared: bool) -> None:
    conn(extra={"token_cache": shared})

    async def first() -> None:
        async with watching(sandbox, takes=False) as (watcher,):
            for _ in range(2):
                sandbox.create_conference()
            await until(lambda: len(watcher.deliveries) == 2)
            watcher.acknowledge(0)
            await asyncio.sleep(0)  # from now on, a thread writes the file
            watcher.acknowledge(1)

    async def second() -> None:
        async with watching(sandbox) as (watcher,):
            await until(lambda: acknowledged(sandbox))
            assert watcher.deliveries == []

    drive(first)
    if shared:
        token_cache.forget()
    drive(second)


@pytest.mark.parametrize("takes", [True, False], ids=["while it runs", "at its end"])
async def test_the_event_loop_does_not_wait_for_the_disk(
    sandbox: Sandbox, conn: Any, caplog: pytest.LogCaptureFixture, takes: bool
) -> None:
    conn(extra={"token_cache": "/proc/dingconf/cache"})  # the thread that writes warns of it
    async with watching(sandbox, takes=takes) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
        if takes:
            await until(lambda: acknowledged(sandbox))
        watcher.acknowledge(0)
    threads = [record.threadName for record in caplog.records if record.name == shared_files.__name__]
    assert len(threads) == 1
    assert "MainThread" not in threads


async def test_another_app_has_its_own_events(sandbox: Sandbox, conn: Any) -> None:
    for kind in ("internal", "third_party"):
        conn(kind)
        async with watching(sandbox) as (watcher,):
            push(sandbox)
            await until(lambda watcher=watcher: watcher.titles)


async def test_the_directories_of_all_watchers_keep_suite_tickets_and_events(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        connection = sandbox.connection_json("third_party", extra={"token_cache": str(tmp_path / name)})
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", connection)
    async with watching(sandbox, "one", "other") as watchers:
        sandbox.renew_suite_ticket()
        sandbox.create_conference()
        await until(lambda: all(one.deliveries for one in watchers) and acknowledged(sandbox))
    for name in ("one", "other"):
        assert {path.suffix for path in (tmp_path / name).iterdir()} >= {".events", ".ticket"}


# Joining


async def test_the_first_event_waits_for_all_who_join_one_after_another(sandbox: Sandbox) -> None:
    async with watching(sandbox):
        pass
    sandbox.create_conference("while nobody listens")
    watchers = []
    for _ in range(3):
        watchers.append(Watcher(join=(0.3, 60.0)))
        await asyncio.sleep(0.1)
    await until(lambda: all(one.deliveries for one in watchers))


async def test_watchers_that_never_stop_joining_do_not_keep_the_others_waiting(sandbox: Sandbox) -> None:
    while not sandbox.streams:
        Watcher(join=(0.2, 0.4))
        await asyncio.sleep(0.1)


# A network that breaks

WRONG_ENDPOINT = {"endpoint": "ws://foreign.invalid/connect", "ticket": "t"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(call="stream", code="systemError", times=2),
        Fault(call="stream", drop=True, times=2),
        Fault(call="stream", body=WRONG_ENDPOINT, times=2),
        Fault(call="stream", body={}, times=1),
        Fault(call="connect", code="authFailed", times=2),
        Fault(call="connect", status=503, times=2),
        Fault(call="connect", drop=True, times=2),
        Fault(call="connect", status=200, body={"not": "a WebSocket"}, times=1),
    ],
    ids=lambda fault: f"{fault.call}: {fault.code or fault.status or fault.body or 'hung up'}",
)
async def test_a_fault_while_connecting_costs_a_ticket_and_no_event(sandbox: Sandbox, fault: Fault) -> None:
    sandbox.fail(fault)
    async with watching(sandbox) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
        assert len(sandbox.calls_of("stream")) > 1


def waits_between(sandbox: Sandbox, call: str) -> list[float]:
    return [b.time - a.time for a, b in itertools.pairwise(sandbox.calls_of(call))]


async def test_the_waits_between_failed_attempts_grow(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="stream", code="systemError", delay=0.05))
    async with watching(None, wait=(0.05, 10.0), lasted=0.02):  # an attempt that takes long did not last
        await until(lambda: len(sandbox.calls_of("stream")) == 4)
    waits = [wait - 0.05 for wait in waits_between(sandbox, "stream")]
    assert all(wait > least for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True))


@pytest.mark.parametrize("politely", [True, False])
async def test_the_waits_between_short_connections_grow(sandbox: Sandbox, politely: bool) -> None:
    async with watching(sandbox, wait=(0.1, 10.0)):
        for calls in (1, 2, 3):
            await until(lambda calls=calls: len(sandbox.calls_of("connect")) == calls and sandbox.streams)
            sandbox.disconnect_streams(politely=politely)
    first, second = waits_between(sandbox, "connect")[:2]
    assert first > 0.1
    assert second > 0.2


async def test_the_wait_is_short_again_after_a_connection_that_lasted(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="connect", status=503, times=2))
    async with watching(sandbox, wait=(0.3, 10.0), lasted=0.1):
        await asyncio.sleep(0.15)
        sandbox.disconnect_streams(politely=False)
        await until(lambda: len(sandbox.calls_of("connect")) == 4)
    _, second, third = waits_between(sandbox, "connect")
    assert second > 0.6
    assert third < 1.2


async def test_dingtalk_is_not_called_for_as_long_as_it_asks_within_bounds(sandbox: Sandbox) -> None:
    throttled = "Forbidden.AccessDenied.QpsLimitForApi"
    sandbox.fail(Fault(call="stream", code=throttled, headers={"Retry-After": "60"}, times=1))
    async with watching(sandbox, retry_after=0.3):
        assert waits_between(sandbox, "stream")[0] >= 0.3


async def test_nothing_is_called_during_a_ban(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="stream", code="addressBanned"))
    async with watching(None, retry_after=0.05):
        await until(lambda: sandbox.calls_of("stream"))
        await asyncio.sleep(0.25)
        assert len(sandbox.calls) == 1


async def test_a_silent_stream_is_replaced_and_no_event_is_lost(sandbox: Sandbox, conn: Any) -> None:
    conn(extra={"stream_silence": 0.3})
    open_before: list[int] = []

    def on_call(call: Any) -> None:
        if call.name == "connect":
            if open_before:  # an event as the new connection takes over
                sandbox.create_conference(str(len(open_before)))
            open_before.append(sandbox.streams)

    sandbox.on_call = on_call
    async with watching(sandbox) as (watcher,):
        await until(lambda: len(open_before) >= 3 and acknowledged(sandbox))
        assert {"1", "2"} <= {*watcher.titles}
        assert len(watcher.titles) == len({*watcher.titles})
    assert open_before[:3] == [0, 1, 1], "the new one is there before the old one ends"


async def test_a_silent_stream_that_cannot_be_replaced_is_a_failed_connection(
    sandbox: Sandbox, conn: Any
) -> None:
    conn(extra={"stream_silence": 0.3})
    async with watching(sandbox) as (watcher,):
        sandbox.fail(Fault(call="stream", code="systemError", times=2))
        await until(lambda: len(sandbox.calls_of("stream")) == 4 and sandbox.streams == 1)
        sandbox.create_conference()
        await until(lambda: watcher.deliveries and acknowledged(sandbox))


@asynccontextmanager
async def served(
    sandbox: Sandbox, handler: Callable[[web.WebSocketResponse], Awaitable[object]], **options: Any
) -> AsyncIterator[None]:
    """Let the sandbox name another server's WebSocket once, which the handler serves."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(**options)
        await socket.prepare(request)
        with suppress(ConnectionError):
            await handler(socket)
        return socket

    app = web.Application()
    app.router.add_get("/connect", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = f"ws://127.0.0.1:{runner.addresses[0][1]}/connect"
    sandbox.fail(Fault(call="stream", body={"endpoint": endpoint, "ticket": "t"}, times=1))
    try:
        yield
    finally:
        await runner.cleanup()


async def test_a_peer_that_sends_nothing_any_more_is_left(sandbox: Sandbox) -> None:
    async def silent(socket: web.WebSocketResponse) -> None:
        while (await socket.receive()).type is not WSMsgType.CLOSED:
            pass

    async with served(sandbox, silent, autoping=False), watching(sandbox, ping=0.2) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
        assert len(sandbox.calls_of("stream")) == 2


async def test_a_malformed_message_is_ignored(sandbox: Sandbox) -> None:
    replies: list[Any] = []
    headers = {"messageId": "m1", "topic": "*", "eventType": "meeting_status_change", "eventId": "e1"}
    data = json.dumps({"openConfModel": {"conferenceId": "c1"}})

    async def strange(socket: web.WebSocketResponse) -> None:
        for text in ("", "no json", "[]", '{"headers": 1}', '{"headers": {"messageId": "m0"}}'):
            await socket.send_str(text)
        await socket.send_bytes(b"\x00")
        await socket.send_json({"type": "EVENT", "headers": headers, "data": data})
        async for message in socket:
            replies.append(message.json())  # noqa: PERF401

    async with served(sandbox, strange), watching(None) as (watcher,):
        await until(lambda: len(replies) == 2)
        assert [reply["headers"]["messageId"] for reply in replies] == ["m0", "m1"]
        assert json.loads(replies[1]["data"]) == {"status": "SUCCESS"}
        assert len(watcher.deliveries) == 1


# Errors that a retry does not change


@pytest.mark.parametrize(
    ("mistake", "says", "calls"),
    [
        (lambda _: None, "dingtalk_default", 0),
        (lambda _: json.dumps({"conn_type": "dingtalk", "login": "a"}), "password (Client Secret)", 0),
        (lambda sandbox: sandbox.connection_json("static_token"), "to an app, not to an access token", 0),
        (lambda sandbox: sandbox.connection_json(password="a-wrong-secret"), "authFailed", 1),
    ],
    ids=["it is missing", "it has no secret", "it has a static token", "its secret is wrong"],
)
async def test_a_wrong_connection_is_an_error_in_the_log_until_it_is_corrected(
    sandbox: Sandbox,
    conn: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mistake: Callable[[Sandbox], str | None],
    says: str,
    calls: int,
) -> None:
    caplog.set_level(logging.INFO)
    connection = mistake(sandbox)
    monkeypatch.setenv(CONN_VARIABLE, connection) if connection else monkeypatch.delenv(CONN_VARIABLE)
    async with watching(None) as (watcher,):
        await until(lambda: "no events are received" in caplog.text)
        await asyncio.sleep(0.2)
        assert len(sandbox.calls_of("stream")) == calls
        conn()
        await until(lambda: sandbox.streams)
        sandbox.create_conference("after all")
        await until(lambda: watcher.titles == ["after all"])
    assert says in caplog.text
    assert ("Client ID and Client Secret do not belong together" in caplog.text) is (says == "authFailed")
    assert "a-wrong-secret" not in caplog.text


async def test_all_watchers_join_again_together_after_each_refusal(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(sandbox, *[DEFAULT] * 5, refused=(0.1, 0.4)) as watchers:
        sandbox.fail(Fault(call="stream", code="authFailed", times=2))
        sandbox.disconnect_streams(politely=False)
        await until(lambda: len(sandbox.calls_of("stream")) == 2)
        sandbox.create_conference("while nobody listens")
        await until(lambda: all(one.deliveries for one in watchers) and acknowledged(sandbox))
    _, *waits = waits_between(sandbox, "stream")  # the first call, two refused ones, and the last
    assert len(waits) == 2
    assert min(waits) >= 0.4
    assert caplog.text.count("no events are received") == 2


async def test_all_watchers_join_again_together_after_a_correction(sandbox: Sandbox, conn: Any) -> None:
    async with watching(sandbox, *[DEFAULT] * 3) as watchers:
        sandbox.fail(Fault(call="stream", code="authFailed", times=1))
        sandbox.disconnect_streams(politely=False)
        await until(lambda: len(sandbox.calls_of("stream")) == 2)
        sandbox.create_conference("while nobody listens")
        conn(extra={"timeout": 7})
        await until(lambda: all(one.deliveries for one in watchers) and acknowledged(sandbox))
        assert len(sandbox.calls_of("stream")) == 3


async def test_a_connection_that_cannot_be_read_is_read_again(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([True, True])

    async def failing(conn_id: str) -> Any:
        if next(failures, False):
            raise RuntimeError("the API server did not respond")  # as what the task SDK raises
        return await connect(conn_id)

    async with watching(sandbox, connect=failing) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
    assert caplog.text.count("no events are received: RuntimeError: the API server did not respond") == 1


async def test_a_fault_of_this_package_reaches_the_watcher() -> None:
    async def broken() -> Any:
        raise ZeroDivisionError

    async def connect_broken(conn_id: str) -> Any:
        client = await connect(conn_id)
        client.events_address = broken
        return client

    with pytest.raises(ZeroDivisionError):
        await Watcher(connect=connect_broken).task
    assert not stream._streams


# Secrets


async def test_events_come_over_tls(
    tls_sandbox: Sandbox, certificates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONN_VARIABLE, tls_sandbox.connection_json(extra={"verify": certificates.authority}))
    async with watching(tls_sandbox) as (watcher,):
        tls_sandbox.create_conference("safe")
        await until(lambda: watcher.titles == ["safe"])


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda _: Fault(call="connect", code="redirect"), "a redirect, which is not followed"),
        (lambda endpoint: Fault(call="stream", body={"endpoint": endpoint, "ticket": "t"}), "badCertificate"),
    ],
    ids=["a redirect leads to", "cannot prove who it is"],
)
async def test_the_ticket_goes_to_no_server_that(
    sandbox: Sandbox, tls_sandbox: Sandbox, caplog: pytest.LogCaptureFixture, fault: Any, says: str
) -> None:
    sandbox.fail(fault(f"WSS://127.0.0.1:{tls_sandbox.port}/connect"))
    async with watching(None):
        await until(lambda: "no events are received" in caplog.text)
    assert says in caplog.text
    assert tls_sandbox.calls == []


async def test_no_secret_is_in_the_log(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox.fail(Fault(call="connect", status=401, times=1))
    sandbox.fail(Fault(call="connect", status=200, body="<html>", times=1))
    async with watching(sandbox) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
        sandbox.disconnect_streams(politely=False)
        await until(lambda: len(sandbox.calls_of("connect")) == 4)
    tickets = [call.parameters["ticket"] for call in sandbox.calls_of("connect")]
    assert len(set(tickets)) == 4
    ours = "\n".join(record.getMessage() for record in caplog.records if "airflow_provider" in record.name)
    assert "HTTP 401" in ours
    assert not [secret for secret in (*tickets, sandbox.client_secret) if secret in caplog.text]


# Ending


@pytest.mark.parametrize(
    "call", [None, "stream", "connect"], ids=["connected", "requesting the address", "connecting"]
)
async def test_cancelling_ends_at_once(sandbox: Sandbox, call: Any, recwarn: pytest.WarningsRecorder) -> None:
    if call:
        sandbox.fail(Fault(call=call, delay=20.0))
    watcher = Watcher()
    await until(lambda: sandbox.calls_of(call) if call else sandbox.streams)
    began = time.monotonic()
    await watcher.stop()
    streams = [one for one in asyncio.all_tasks() if one.get_name() == "dingtalk-event-stream"]
    await asyncio.gather(*streams, return_exceptions=True)
    assert time.monotonic() - began < 15.0
    assert not stream._streams
    assert not [warning for warning in recwarn if "ticket" in str(warning.message)]


# Suite tickets


async def test_a_pushed_suite_ticket_obtains_the_next_token(
    sandbox: Sandbox, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    conn("third_party")
    async with watching(sandbox):
        ticket = sandbox.renew_suite_ticket()
        await until(lambda: acknowledged(sandbox))
        assert ticket not in caplog.text
    token_cache.forget()  # as in another process
    assert (await DingTalkConferenceHook().alock_conference("sandbox-open"))["success"]
    assert len(sandbox.calls_of("token")) == 1

"""An app's event stream, as those who watch it see it, against the sandbox."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
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
from streams import acknowledged, connect, drive, until

from airflow_provider_dingconf.client import event_stream as stream
from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.event_stream import Delivery, StreamOptions, Watch
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

SOON = 0.3
"""Seconds after which the sandbox delivers an event again."""

QUICK = StreamOptions(join=(0.05, 1.0), wait=(0.02, 0.1), refused=(0.05, 60.0), restart=0.1)
"""What is for a network and for a person, shortened."""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(redelivery=SOON) as running:
        yield running


@pytest.fixture(autouse=True)
def connected(conn: Any) -> None:
    """Let the default connection lead to the sandbox."""


class Watcher:
    """Somebody who watches events.

    :param takes: whether an event is acknowledged as soon as it comes.
    :param fires: whether an event starts something.
    :param options: of the stream, other than the quick ones.
    """

    def __init__(
        self,
        conn_id: str = "dingtalk_default",
        *,
        takes: bool = True,
        fires: bool = True,
        connect: Any = connect,
        **options: Any,
    ) -> None:
        self.deliveries: list[Delivery] = []
        self._takes = takes
        self._fires = fires
        self._watch = Watch(conn_id, connect, replace(QUICK, **options))
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async for delivery in self._watch.deliveries():
            self.deliveries.append(delivery)
            if self._fires:
                delivery.fired.add(self)
            if self._takes:
                self._watch.acknowledge(delivery)

    def acknowledge(self, number: int) -> None:
        self._watch.acknowledge(self.deliveries[number])

    def refuse(self, number: int) -> None:
        self._watch.refuse(self.deliveries[number])

    @property
    def titles(self) -> list[str | None]:
        return [event.title for delivery in self.deliveries for event in delivery.events]

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def watching(sandbox: Sandbox, *conn_ids: str, **options: Any) -> AsyncIterator[list[Watcher]]:
    """Let somebody watch for each of the connections, from when the sandbox knows."""
    watchers = [Watcher(conn_id, **options) for conn_id in conn_ids or ("dingtalk_default",)]
    try:
        await until(lambda: sandbox.streams)
        yield watchers
    finally:
        for watcher in watchers:
            await watcher.stop()


def status_change(title: str = "Meeting", conference_id: str = "c1") -> dict[str, Any]:
    model = {"conferenceId": conference_id, "title": title, "status": 2}
    return {"openConfModel": model, "changeScene": "conference_created"}


# Events, and who gets them


async def test_a_watcher_sees_what_happens_in_meetings_and_it_is_acknowledged(sandbox: Sandbox) -> None:
    async with watching(sandbox) as (watcher,):
        meeting = sandbox.create_conference("Release")
        sandbox.join(meeting, "somebody")
        sandbox.end(meeting)
        await until(lambda: len(watcher.deliveries) == 3 and acknowledged(sandbox))
        scenes = [delivery.events[0].scene for delivery in watcher.deliveries]
        assert scenes == ["conference_created", "user_join", "conference_closed"]
        assert [event.acknowledgements for event in sandbox.events] == [["SUCCESS"]] * 3


async def test_every_watcher_of_an_app_sees_every_event_over_one_connection(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ANOTHER", sandbox.connection_json("unified"))
    async with watching(sandbox, "dingtalk_default", "dingtalk_default", "another") as watchers:
        for number in range(20):
            sandbox.create_conference(str(number))
        await until(lambda: all(len(one.deliveries) == 20 for one in watchers) and acknowledged(sandbox))
        assert {tuple(sorted(map(str, one.titles))) for one in watchers} == {
            tuple(sorted(map(str, range(20))))
        }
        assert len(sandbox.calls_of("connect")) == 1
        assert {event.deliveries for event in sandbox.events} == {1}


async def test_the_last_watcher_to_leave_closes_the_connection(sandbox: Sandbox) -> None:
    async with watching(sandbox) as (first,):
        second = Watcher()
        await asyncio.sleep(0.1)
        await first.stop()
        sandbox.create_conference("for the second")
        await until(lambda: second.deliveries)
        assert sandbox.streams == 1
        await second.stop()
        await until(lambda: not sandbox.streams)
        assert not stream._streams


async def test_events_of_other_kinds_are_acknowledged_and_go_to_nobody(sandbox: Sandbox) -> None:
    async with watching(sandbox) as (watcher,):
        sandbox.push_event("chat_update_title", {"title": "x"})
        sandbox.push_event("meeting_status_change", {"changeScene": "conference_created"})
        await until(lambda: len(sandbox.events) == 2 and acknowledged(sandbox))
        assert watcher.deliveries == []


async def test_an_event_of_a_meeting_that_cannot_be_read_is_a_warning_without_its_values(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(sandbox):
        for _ in range(3):
            model = {"confId": "c1", "title": "a private title"}
            sandbox.push_event("meeting_status_change", {"openConfModel": model, "odd\ud83d": 1})
        await until(lambda: len(sandbox.events) == 3 and acknowledged(sandbox))
    assert caplog.text.count("meeting_status_change names no meeting") == 1
    assert "'openConfModel': ['confId', 'title'], 'odd\\ud83d': ''" in caplog.text
    assert "private" not in caplog.text


async def test_a_connection_with_an_organisation_gets_the_events_of_that_alone(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OF_ONE", sandbox.connection_json("unified"))
    async with watching(sandbox, "dingtalk_default", "of_one") as (of_all, of_one):
        sandbox.push_event("meeting_status_change", status_change("foreign"), corp_id="another")
        sandbox.push_event("meeting_status_change", status_change("own"))
        await until(lambda: len(of_all.deliveries) == 2 and acknowledged(sandbox))
        assert of_one.titles == ["own"]


async def test_events_that_start_nothing_are_not_remembered(sandbox: Sandbox) -> None:
    async with watching(sandbox, fires=False) as (watcher,):
        await push_until_acknowledged(sandbox, "e1")
        await push_until_acknowledged(sandbox, "e1")
        assert len(watcher.deliveries) == 2
    assert not list(token_cache.default_directory().glob("*.events"))


# What is acknowledged when


async def test_an_event_is_acknowledged_when_all_have_taken_it(sandbox: Sandbox) -> None:
    async with watching(sandbox, "dingtalk_default", "dingtalk_default", takes=False) as (one, other):
        sandbox.create_conference()
        await until(lambda: one.deliveries and other.deliveries)
        one.acknowledge(0)
        await asyncio.sleep(0.1)
        assert not acknowledged(sandbox)
        other.acknowledge(0)
        await until(lambda: acknowledged(sandbox))


async def test_an_event_that_comes_again_before_it_is_taken_is_one(sandbox: Sandbox) -> None:
    async with watching(sandbox, takes=False) as (watcher,):
        sandbox.create_conference()
        await until(lambda: sandbox.events[0].deliveries >= 3)
        watcher.acknowledge(0)
        await until(lambda: acknowledged(sandbox))
        assert len(watcher.deliveries) == 1


async def test_an_event_that_was_refused_is_put_off_and_comes_again(sandbox: Sandbox) -> None:
    async with watching(sandbox, takes=False) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
        watcher.refuse(0)
        await until(lambda: len(watcher.deliveries) == 2)
        watcher.acknowledge(1)
        await until(lambda: acknowledged(sandbox))
        assert sandbox.events[0].acknowledgements == ["LATER", "SUCCESS"]


async def test_what_a_watcher_that_left_did_not_take_comes_again_to_the_others(sandbox: Sandbox) -> None:
    async with watching(sandbox, "dingtalk_default", "dingtalk_default", takes=False) as (one, other):
        sandbox.create_conference()
        await until(lambda: one.deliveries and other.deliveries)
        other.acknowledge(0)
        await one.stop()
        await until(lambda: len(other.deliveries) == 2)
        other.acknowledge(1)
        await until(lambda: acknowledged(sandbox))


async def test_what_comes_just_after_a_watcher_left_comes_again_when_it_may_be_back(sandbox: Sandbox) -> None:
    async with watching(sandbox, "dingtalk_default", "dingtalk_default", restart=0.7) as (one, other):
        await one.stop()
        sandbox.create_conference()
        await until(lambda: other.deliveries)
        back = Watcher()
        await until(lambda: back.deliveries and acknowledged(sandbox))
        assert "SUCCESS" not in sandbox.events[0].acknowledgements[:-1]
        await back.stop()


async def test_too_many_events_at_once_are_put_off(sandbox: Sandbox) -> None:
    async with watching(sandbox, takes=False, max_open=2) as (watcher,):
        for number in range(3):
            sandbox.create_conference(str(number))
        await until(lambda: ["LATER"] in [event.acknowledgements[:1] for event in sandbox.events])
        for number in range(2):
            watcher.acknowledge(number)
        await until(lambda: len(watcher.deliveries) == 3)
        watcher.acknowledge(2)
        await until(lambda: acknowledged(sandbox))


# Once, and across restarts


async def push_until_acknowledged(sandbox: Sandbox, event_id: str) -> None:
    sandbox.push_event("meeting_status_change", status_change(), event_id=event_id)
    await until(lambda: acknowledged(sandbox))


async def test_an_event_that_was_taken_starts_nothing_when_it_comes_again(sandbox: Sandbox) -> None:
    async with watching(sandbox) as (watcher,):
        await push_until_acknowledged(sandbox, "e1")
        await push_until_acknowledged(sandbox, "e1")
        assert len(watcher.deliveries) == 1
    await until(lambda: not sandbox.streams)
    token_cache.forget()  # as in another process
    async with watching(sandbox) as (watcher,):
        await push_until_acknowledged(sandbox, "e1")
        await push_until_acknowledged(sandbox, "e2")
        assert len(watcher.deliveries) == 1


async def test_an_event_that_was_not_taken_comes_again_after_a_restart(sandbox: Sandbox) -> None:
    async with watching(sandbox, takes=False) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
    await until(lambda: not sandbox.streams)
    assert not acknowledged(sandbox)
    async with watching(sandbox) as (watcher,):
        await until(lambda: watcher.deliveries and acknowledged(sandbox))


def test_what_was_taken_at_the_very_end_is_remembered(sandbox: Sandbox) -> None:
    async def first() -> None:
        async with watching(sandbox, takes=False) as (watcher,):
            sandbox.create_conference()
            await until(lambda: watcher.deliveries)
            watcher.acknowledge(0)

    async def second() -> None:
        async with watching(sandbox) as (watcher,):
            await until(lambda: acknowledged(sandbox))
            assert watcher.deliveries == []

    drive(first)
    drive(second)


async def test_another_app_has_events_of_its_own(sandbox: Sandbox, conn: Any) -> None:
    for kind in ("internal", "third_party"):
        conn(kind)
        async with watching(sandbox) as (watcher,):
            sandbox.push_event("meeting_status_change", status_change(), event_id="e1")
            await until(lambda watcher=watcher: watcher.deliveries)
        await until(lambda: not sandbox.streams)


def test_no_more_events_are_remembered_than_there_is_room_for(tmp_path: Path) -> None:
    file = token_cache.SharedFile(tmp_path / "own" / "events", token_cache.MAX_SEEN * 16)
    seen = token_cache.SeenEvents(file)
    seen.add(str(number) for number in range(token_cache.MAX_SEEN + 10))
    seen.save()
    again = token_cache.SeenEvents(file)
    again.load()
    assert file.path.stat().st_size == token_cache.MAX_SEEN * 16
    for known in (seen, again):
        assert "9" not in known
        assert "10" in known
        assert str(token_cache.MAX_SEEN + 9) in known


def test_two_processes_add_to_what_they_remember(tmp_path: Path) -> None:
    file = token_cache.SharedFile(tmp_path / "own" / "events", token_cache.MAX_SEEN * 16)
    one, other = token_cache.SeenEvents(file), token_cache.SeenEvents(file)
    for seen, event_id in ((one, "a"), (other, "b")):
        seen.add([event_id])
        seen.save()
    again = token_cache.SeenEvents(file)
    again.load()
    assert "a" in again
    assert "b" in again


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_memory_of_events_is_no_error(tmp_path: Path, content: bytes) -> None:
    file = token_cache.SharedFile(tmp_path / "own" / "events")
    file.write(content)
    seen = token_cache.SeenEvents(file)
    seen.load()
    seen.add(["a"])
    seen.save()
    assert "a" in seen


def own_directory(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, name: str, directory: Any) -> None:
    """Set a connection that keeps what is shared in a directory of its own."""
    connection = json.loads(sandbox.connection_json("third_party", extra={"token_cache": directory}))
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))


async def test_what_is_kept_goes_to_the_directories_of_all_who_watch(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        own_directory(monkeypatch, sandbox, name, str(tmp_path / name))
    async with watching(sandbox, "one", "other") as watchers:
        sandbox.renew_suite_ticket()
        sandbox.create_conference()
        await until(lambda: all(one.deliveries for one in watchers) and acknowledged(sandbox))
    for name in ("one", "other"):
        assert {path.suffix for path in (tmp_path / name).iterdir()} >= {".events", ".ticket"}


async def test_without_files_the_process_remembers_what_started_something(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_directory(monkeypatch, sandbox, "memory", False)
    async with watching(sandbox, "memory", takes=False) as (first,):
        sandbox.create_conference()
        await until(lambda: first.deliveries)
        first.acknowledge(0)
        await first.stop()
        second = Watcher("memory")
        await until(lambda: acknowledged(sandbox))
        assert second.deliveries == []
        await second.stop()


async def test_what_is_saved_at_the_end_does_not_block_the_loop(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    save = token_cache.SeenEvents.save

    def noted(seen: token_cache.SeenEvents) -> None:
        threads.append(threading.current_thread())
        save(seen)

    monkeypatch.setattr(token_cache.SeenEvents, "save", noted)
    async with watching(sandbox, takes=False) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
        watcher.acknowledge(0)
    assert threads
    assert threading.main_thread() not in threads


# Who joins when


async def test_the_first_event_waits_for_all_who_join_one_after_another(sandbox: Sandbox) -> None:
    async with watching(sandbox):
        pass
    await until(lambda: not sandbox.streams)
    sandbox.create_conference("while nobody listens")
    watchers = []
    for _ in range(4):
        watchers.append(Watcher(join=(0.4, 60.0)))
        await asyncio.sleep(0.2)
    await until(lambda: all(one.deliveries for one in watchers))
    for watcher in watchers:
        await watcher.stop()


async def test_those_who_never_stop_joining_do_not_keep_the_others_waiting(sandbox: Sandbox) -> None:
    watchers = []
    while not sandbox.streams:
        watchers.append(Watcher(join=(0.4, 0.6)))
        await asyncio.sleep(0.2)
    for watcher in watchers:
        await watcher.stop()


# A network that breaks


@pytest.mark.parametrize("politely", [True, False])
async def test_a_connection_that_ends_is_replaced_and_no_event_is_lost(
    sandbox: Sandbox, politely: bool
) -> None:
    async with watching(sandbox) as (watcher,):
        for number in range(30):
            if number in (10, 20):
                sandbox.disconnect_streams(politely=politely)
            sandbox.create_conference(str(number))
            await asyncio.sleep(0.01)
        await until(lambda: len(watcher.deliveries) >= 30 and acknowledged(sandbox))
        assert sorted(map(str, watcher.titles)) == sorted(map(str, range(30)))
        assert len(sandbox.calls_of("connect")) >= 2


async def test_a_refused_ticket_is_replaced(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="connect", code="authFailed", times=2))
    async with watching(sandbox) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
        assert len(sandbox.calls_of("stream")) == 3


@pytest.mark.parametrize(
    "fault",
    [
        {"call": "stream", "code": "systemError", "times": 2},
        {"call": "stream", "drop": True, "times": 2},
        {"call": "stream", "body": {"endpoint": "ws://foreign.invalid/connect", "ticket": "t"}, "times": 2},
        {"call": "stream", "body": {}, "times": 1},
        {"call": "connect", "status": 503, "times": 2},
        {"call": "connect", "drop": True, "times": 2},
        {"call": "connect", "status": 200, "body": {"not": "a WebSocket"}, "times": 1},
    ],
)
async def test_a_fault_while_connecting_is_outlasted(sandbox: Sandbox, fault: dict[str, Any]) -> None:
    sandbox.fail(Fault(**fault))
    async with watching(sandbox) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)


def no_jitter(_least: float) -> float:
    return 1.0


@pytest.mark.parametrize("takes", [0.0, 0.3])
async def test_waits_grow_and_dingtalk_is_not_hammered(sandbox: Sandbox, takes: float) -> None:
    sandbox.fail(Fault(call="stream", code="systemError", delay=takes))
    watcher = Watcher(wait=(0.1, 10.0), lasted=0.1, jitter=no_jitter)
    await until(lambda: len(sandbox.calls_of("stream")) == 4)
    await watcher.stop()
    times = [call.time for call in sandbox.calls_of("stream")]
    waits = [later - earlier - takes for earlier, later in itertools.pairwise(times)]
    assert all(wait > least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True))


@pytest.mark.parametrize("politely", [True, False])
async def test_connections_that_are_lost_soon_are_made_less_and_less_often(
    sandbox: Sandbox, politely: bool
) -> None:
    async with watching(sandbox, wait=(0.2, 10.0), jitter=no_jitter):
        for calls in (1, 2, 3):
            await until(lambda calls=calls: len(sandbox.calls_of("connect")) == calls and sandbox.streams)
            sandbox.disconnect_streams(politely=politely)
        times = [call.time for call in sandbox.calls_of("connect")]
        assert times[1] - times[0] > 0.2
        assert times[2] - times[1] > 0.4


async def test_a_connection_that_lasts_makes_up_for_those_that_failed(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="connect", status=503, times=2))
    async with watching(sandbox, wait=(0.5, 10.0), lasted=0.3, jitter=no_jitter):
        await asyncio.sleep(0.4)
        sandbox.disconnect_streams(politely=False)
        await until(lambda: len(sandbox.calls_of("connect")) == 4)
        times = [call.time for call in sandbox.calls_of("connect")]
        assert times[2] - times[1] > 1.0
        assert times[3] - times[2] < 2.0


async def test_dingtalk_is_left_alone_for_as_long_as_it_asks(sandbox: Sandbox) -> None:
    throttled = "Forbidden.AccessDenied.QpsLimitForApi"
    sandbox.fail(Fault(call="stream", code=throttled, headers={"Retry-After": "1"}, times=1))
    async with watching(sandbox):
        first, second = (call.time for call in sandbox.calls_of("stream"))
        assert second - first >= 1.0


async def test_nothing_is_called_during_a_ban(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="stream", code="addressBanned"))

    watcher = Watcher()
    await until(lambda: sandbox.calls_of("stream"))
    await asyncio.sleep(0.5)
    assert len(sandbox.calls) == 1
    await watcher.stop()


@asynccontextmanager
async def served(handler: Callable[[web.WebSocketResponse], Awaitable[object]], **options: Any) -> Any:
    """Serve WebSockets of another kind than the sandbox's, and give their address."""

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
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/connect"
    finally:
        await runner.cleanup()


async def test_a_stream_that_is_alive_and_silent_gives_way_to_a_new_one_and_no_event_is_lost(
    sandbox: Sandbox,
) -> None:
    open_at_once: list[int] = []
    async with watching(sandbox, silence=0.4) as (watcher,):
        until_connects = 4
        numbers = iter(range(1000))
        while len(sandbox.calls_of("connect")) < until_connects:
            if len(sandbox.calls_of("connect")) != len(open_at_once):  # an event as the new one takes over
                open_at_once.append(sandbox.streams)
                sandbox.create_conference(str(next(numbers)))
            await asyncio.sleep(0.001)
        await until(lambda: acknowledged(sandbox) and sandbox.streams == 1)
        assert sorted(map(str, watcher.titles)) == [str(number) for number in range(next(numbers))]
    assert 2 in open_at_once  # the new one is there before the old one ends


async def test_a_silent_stream_whose_place_no_new_one_can_take_is_a_connection_that_failed(
    sandbox: Sandbox,
) -> None:
    async with watching(sandbox, silence=0.4) as (watcher,):
        sandbox.fail(Fault(call="stream", code="systemError", times=2))
        await until(lambda: len(sandbox.calls_of("stream")) == 4 and sandbox.streams == 1)
        sandbox.create_conference()
        await until(lambda: watcher.deliveries and acknowledged(sandbox))


async def test_a_peer_that_went_silent_is_left(sandbox: Sandbox) -> None:
    async def silent(socket: web.WebSocketResponse) -> None:
        while (await socket.receive()).type is not WSMsgType.CLOSED:
            pass

    async with served(silent, autoping=False) as endpoint:
        sandbox.fail(Fault(call="stream", body={"endpoint": endpoint, "ticket": "t"}, times=1))
        async with watching(sandbox, ping=0.2) as (watcher,):
            sandbox.create_conference()
            await until(lambda: watcher.deliveries)
            assert len(sandbox.calls_of("stream")) == 2


async def test_a_message_that_makes_no_sense_is_left_out(sandbox: Sandbox) -> None:
    answers: list[Any] = []

    async def strange(socket: web.WebSocketResponse) -> None:
        headers = {"messageId": "m1", "topic": "*", "eventType": "meeting_status_change", "eventId": "e1"}
        for text in ("", "no json", "[]", '{"headers": 1}', '{"headers": {"messageId": "m0"}}'):
            await socket.send_str(text)
        await socket.send_bytes(b"\x00")
        frame = {"type": "EVENT", "headers": headers, "data": json.dumps(status_change())}
        await socket.send_str(json.dumps(frame))
        async for message in socket:
            answers.append(message.json())  # noqa: PERF401

    async with served(strange) as endpoint:
        sandbox.fail(Fault(call="stream", body={"endpoint": endpoint, "ticket": "t"}, times=1))
        watcher = Watcher()
        await until(lambda: len(answers) == 2)
        assert [answer["headers"]["messageId"] for answer in answers] == ["m0", "m1"]
        assert json.loads(answers[1]["data"]) == {"status": "SUCCESS"}
        assert watcher.titles == ["Meeting"]
        await watcher.stop()


# Errors that repeating does not change


async def test_wrong_credentials_are_an_error_in_the_log_until_the_connection_is_put_right(
    sandbox: Sandbox, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    conn(password="a-wrong-secret")
    watcher = Watcher()
    await until(lambda: "no events are received" in caplog.text)
    await asyncio.sleep(0.3)
    assert len(sandbox.calls_of("stream")) == 1
    conn()
    await until(lambda: sandbox.streams)
    sandbox.create_conference("after all")
    await until(lambda: watcher.titles == ["after all"])
    await watcher.stop()
    assert "authFailed" in caplog.text
    assert "Client ID and Client Secret do not belong together" in caplog.text
    assert "a-wrong-secret" not in caplog.text


async def test_refused_credentials_are_tried_again_after_a_long_while(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="stream", code="authFailed", times=1))
    async with watching(sandbox, refused=(0.05, 0.5)):
        first, second = (call.time for call in sandbox.calls_of("stream"))
        assert second - first >= 0.4


async def test_all_who_watch_are_there_again_together_after_a_refusal(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(sandbox, *["dingtalk_default"] * 10, refused=(0.2, 1.5)) as watchers:
        sandbox.fail(Fault(call="stream", code="authFailed", times=2))
        sandbox.disconnect_streams(politely=False)
        await until(lambda: len(sandbox.calls_of("stream")) == 2)
        sandbox.create_conference("while nobody listens")
        await until(lambda: all(one.deliveries for one in watchers) and acknowledged(sandbox))
        assert len(sandbox.calls_of("stream")) == 4  # the first, two refused ones, and the last
    assert caplog.text.count("no events are received") == 2


async def test_all_who_watch_join_again_when_the_connection_is_put_right(sandbox: Sandbox, conn: Any) -> None:
    async with watching(sandbox, *["dingtalk_default"] * 3) as watchers:
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
            raise RuntimeError("the API server did not answer")  # as what the task SDK raises
        return await connect(conn_id)

    async with watching(sandbox, connect=failing) as (watcher,):
        sandbox.create_conference()
        await until(lambda: watcher.deliveries)
    assert caplog.text.count("no events are received: RuntimeError: the API server did not answer") == 1


@pytest.mark.parametrize(
    ("connection", "says"),
    [
        (None, "dingtalk_default"),
        ({"conn_type": "dingtalk", "login": "a"}, "password (Client Secret)"),
        ("static_token", "events come to an app, not to an access token"),
    ],
)
async def test_a_connection_that_gets_no_events_is_an_error_in_the_log(
    sandbox: Sandbox,
    conn: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    connection: Any,
    says: str,
) -> None:
    if connection is None:
        monkeypatch.delenv(CONN_VARIABLE)
    elif isinstance(connection, str):
        conn(connection)
    else:
        monkeypatch.setenv(CONN_VARIABLE, json.dumps(connection))

    watcher = Watcher()
    await until(lambda: "no events are received" in caplog.text)
    conn()
    await until(lambda: sandbox.streams)
    await watcher.stop()
    assert says in caplog.text


async def test_a_redirect_is_not_followed(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    sandbox.fail(Fault(call="connect", code="redirect"))

    watcher = Watcher()
    await until(lambda: "no events are received" in caplog.text)
    await watcher.stop()
    assert "a redirect, which is not followed" in caplog.text


async def test_a_fault_of_this_package_reaches_the_watcher(sandbox: Sandbox) -> None:
    async def broken() -> Any:
        raise ZeroDivisionError

    async def connect_broken(conn_id: str) -> Any:
        client = await connect(conn_id)
        client.events_address = broken
        return client

    watcher = Watcher(connect=connect_broken)
    with pytest.raises(ZeroDivisionError):
        await watcher.task
    assert not stream._streams


# TLS


async def test_events_come_over_tls(
    tls_sandbox: Sandbox, certificates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONN_VARIABLE, tls_sandbox.connection_json(extra={"verify": certificates.authority}))
    async with watching(tls_sandbox) as (watcher,):
        tls_sandbox.create_conference("safe")
        await until(lambda: watcher.titles == ["safe"])


@pytest.mark.parametrize("scheme", ["wss", "WSS", "Wss"])
async def test_a_server_of_events_that_cannot_prove_who_it_is_gets_no_ticket(
    sandbox: Sandbox, tls_sandbox: Sandbox, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    endpoint = f"{scheme}://127.0.0.1:{tls_sandbox.port}/connect"
    sandbox.fail(Fault(call="stream", body={"endpoint": endpoint, "ticket": "t"}))
    watcher = Watcher()
    await until(lambda: "no events are received" in caplog.text)
    await watcher.stop()
    assert "badCertificate" in caplog.text
    assert tls_sandbox.calls == []


# Ending


@pytest.mark.parametrize(
    "fault", [None, {"call": "stream", "delay": 20.0}, {"call": "connect", "delay": 20.0}]
)
async def test_cancelling_ends_at_once(
    sandbox: Sandbox, fault: Any, recwarn: pytest.WarningsRecorder
) -> None:
    if fault:
        sandbox.fail(Fault(**fault))

    watcher = Watcher()
    await until(lambda: sandbox.streams if not fault else sandbox.calls_of(fault["call"]))
    began = time.monotonic()
    await watcher.stop()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.get_name() == "dingtalk-event-stream":
            with suppress(asyncio.CancelledError):
                await task
    assert time.monotonic() - began < 15.0
    assert not stream._streams
    assert not [warning for warning in recwarn if "ticket" in str(warning.message)]


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


# Suite tickets


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_pushed_suite_ticket_obtains_the_next_token(
    sandbox: Sandbox, conn: Any, awaited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    conn("third_party")
    async with watching(sandbox):
        ticket = sandbox.renew_suite_ticket()
        await until(lambda: acknowledged(sandbox))
        assert ticket not in caplog.text
    token_cache.forget()  # as in another process
    hook, meeting = DingTalkConferenceHook(), sandbox.create_conference()
    lock = hook.alock_conference(meeting) if awaited else asyncio.to_thread(hook.lock_conference, meeting)
    assert (await lock)["success"]
    assert len(sandbox.calls_of("token")) == 1


def test_a_pushed_suite_ticket_that_is_refused_gives_way_to_the_connections(
    sandbox: Sandbox, conn: Any
) -> None:
    conn("third_party")
    token_cache.suite_ticket_of(DingTalkConferenceHook().settings).put("a-ticket-of-old", 1.0)
    assert DingTalkConferenceHook().lock_conference(sandbox.create_conference())["success"]
    tickets = [call.json()["suiteTicket"] for call in sandbox.calls_of("token")]
    assert tickets == ["a-ticket-of-old", sandbox.suite_ticket]


def test_a_pushed_suite_ticket_is_for_no_other_kind_of_app(sandbox: Sandbox) -> None:
    token_cache.suite_ticket_of(DingTalkConferenceHook().settings).put("a-ticket", 1.0)
    assert DingTalkConferenceHook().lock_conference(sandbox.create_conference())["success"]


def test_an_older_suite_ticket_does_not_replace_a_newer_one(conn: Any) -> None:
    kept = token_cache.suite_ticket_of(DingTalkConferenceHook().settings)
    kept.put("newer", 2.0)
    kept.put("older", 1.0)
    assert kept.pushed == "newer"
    token_cache.forget()
    kept = token_cache.suite_ticket_of(DingTalkConferenceHook().settings)
    kept.put("older", 1.0)
    assert kept.pushed == "newer"


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_suite_ticket_from_the_future_gives_way_to_the_next(
    conn: Any, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    kept = token_cache.suite_ticket_of(DingTalkConferenceHook().settings)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 9e11)  # a clock that was wrong
        kept.put("of the future", 9e11)
    if forgotten:
        token_cache.forget()
        kept = token_cache.suite_ticket_of(DingTalkConferenceHook().settings)
    assert kept.pushed == "of the future"
    kept.put("born ahead of this clock", time.time() + 1000.0)
    assert kept.pushed == "born ahead of this clock"
    kept.put("of now", time.time())
    assert kept.pushed == "of now"


def test_a_kept_suite_ticket_is_worth_nothing_without_the_client_secret(sandbox: Sandbox) -> None:
    settings = DingTalkConferenceHook().settings
    token_cache.suite_ticket_of(settings).put("a-precious-ticket", 1.0)
    (file,) = token_cache.default_directory().glob("*.ticket")
    assert file.stat().st_mode & 0o077 == 0
    assert b"a-precious-ticket" not in file.read_bytes()
    shared = token_cache.SharedFile(file)
    assert token_cache.SuiteTicket(sandbox.client_secret, shared).pushed == "a-precious-ticket"
    assert token_cache.SuiteTicket("another-secret", shared).pushed is None

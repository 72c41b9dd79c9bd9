"""The sandbox and DingTalk's own SDK for events understand each other.

The SDK is the witness that the sandbox pushes events as DingTalk does. It is not what this package is made
with: it blocks its loop, and cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

pytest.importorskip("dingtalk_stream")

import dingtalk_stream
from dingtalk_stream import AckMessage, DingTalkStreamClient

PATIENCE = 120.0


class Handler(dingtalk_stream.EventHandler):  # type: ignore[misc]
    """Keeps the events that come, and answers each as it is told to."""

    def __init__(self, answers: list[int] | None = None) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.answers = answers or []

    async def process(self, event: Any) -> tuple[int, str]:
        self.events.append(event)
        return (self.answers.pop(0) if self.answers else AckMessage.STATUS_OK), "OK"


class Listening:
    """The SDK's client at work, in a thread of its own, for a block."""

    def __init__(self, sandbox: Sandbox, handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
        endpoint = f"{sandbox.url}/v1.0/gateway/connections/open"
        monkeypatch.setattr(DingTalkStreamClient, "OPEN_CONNECTION_API", endpoint)
        credential = dingtalk_stream.Credential(sandbox.client_id, sandbox.client_secret)
        self.client = DingTalkStreamClient(credential)
        self.client.register_all_event_handler(handler)
        self.sandbox = sandbox

    def __enter__(self) -> Listening:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(lambda: self.sandbox.streams)
        return self

    def _run(self) -> None:
        self._loop.run_until_complete(self._until_stopped())

    async def _until_stopped(self) -> None:
        self._stopped = asyncio.Event()
        working = asyncio.ensure_future(self.client.start())
        await self._stopped.wait()
        # The SDK swallows what cancels it: its loop ends without it.
        working.cancel()

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for task in asyncio.all_tasks(self._loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]


def wait_until(condition: Any) -> None:
    """Wait for something that happens in another thread."""
    ticking = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if condition():
            return
        ticking.wait(0.02)
    raise AssertionError("it did not happen in time")


def test_the_sdk_receives_events_and_acknowledges_them(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Handler()
    with Listening(sandbox, handler, monkeypatch):
        meeting = sandbox.create_conference("周会")
        sandbox.join(meeting, "somebody")
        sandbox.end(meeting)
        wait_until(lambda: len(sandbox.events) == 3 and all(event.acknowledged for event in sandbox.events))
    started, joined, ended = handler.events
    assert started.headers.event_type == ended.headers.event_type == "meeting_status_change"
    assert started.data["openConfModel"]["title"] == "周会"
    assert started.data["changeScene"] == "conference_created"
    assert started.headers.event_id == sandbox.events[0].event_id
    assert started.headers.event_born_time == sandbox.events[0].born_at
    assert started.headers.event_corp_id == sandbox.corp_id
    assert joined.headers.event_type == "meeting_member_status_change"
    assert ended.data["changeScene"] == "conference_closed"
    assert [event.deliveries for event in sandbox.events] == [1, 1, 1]


def test_what_the_sdk_asks_for_is_what_this_package_asks_for(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_dingconf.dingtalk.events import open_call
    from airflow_provider_dingconf.dingtalk.tokens import App

    with Listening(sandbox, Handler(), monkeypatch):
        (call,) = sandbox.calls_of("stream")
    asked = open_call(App(sandbox.client_id, sandbox.client_secret)).request()
    assert (call.method, call.path) == (asked.method, asked.target)
    # Their own names, and an address of this machine, which the SDK for Node does not send either.
    own = {"ua", "localIp"}
    body = json.loads(asked.content or b"")
    assert {**call.json(), "ua": "", "localIp": ""} == {**body, "ua": "", "localIp": ""}
    assert own >= call.json().keys() - (body.keys() - own)


def test_the_sdk_gets_an_event_again_that_it_could_not_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Handler([AckMessage.STATUS_SYSTEM_EXCEPTION])
    with Sandbox(redelivery=0.1) as sandbox, Listening(sandbox, handler, monkeypatch):
        event_id = sandbox.push_event("anything", {})
        wait_until(lambda: sandbox.events and sandbox.events[0].acknowledged)
        assert [event.headers.event_id for event in handler.events] == [event_id, event_id]
        assert sandbox.events[0].acknowledgements == ["code 500", "SUCCESS"]


def test_the_sdk_connects_again_when_it_is_told_to(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Handler()
    with Listening(sandbox, handler, monkeypatch):
        sandbox.disconnect_streams()
        wait_until(lambda: len(sandbox.calls_of("connect")) == 2 and sandbox.streams == 1)
        sandbox.push_event("anything", {})
        wait_until(lambda: sandbox.events and sandbox.events[0].acknowledged)
    assert len(handler.events) == 1

"""The sandbox and DingTalk's own SDK for events understand each other.

The SDK is the witness that the sandbox pushes events as DingTalk does. It is not what this package is made
with: it blocks its loop, and cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

pytest.importorskip("dingtalk_stream")

import dingtalk_stream
from dingtalk_stream import AckMessage, DingTalkStreamClient

PATIENCE = 120.0


class Handler(dingtalk_stream.EventHandler):  # type: ignore[misc]
    """Keeps the events that come, and acknowledges each with the next of some statuses, or as handled."""

    def __init__(self, *statuses: int) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.statuses = list(statuses)

    async def process(self, event: Any) -> tuple[int, str]:
        self.events.append(event)
        return (self.statuses.pop(0) if self.statuses else AckMessage.STATUS_OK), "OK"


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what lets the SDK's client work in a thread for a block."""

    @contextmanager
    def listening(sandbox: Sandbox, handler: Handler) -> Iterator[None]:
        endpoint = f"{sandbox.url}/v1.0/gateway/connections/open"
        monkeypatch.setattr(DingTalkStreamClient, "OPEN_CONNECTION_API", endpoint)
        credential = dingtalk_stream.Credential(sandbox.client_id, sandbox.client_secret)
        client = DingTalkStreamClient(credential)
        client.register_all_event_handler(handler)
        loop, stopped = asyncio.new_event_loop(), asyncio.Event()

        async def until_stopped() -> None:
            working = asyncio.ensure_future(client.start())
            await stopped.wait()
            # The SDK swallows what cancels it: its loop ends without it.
            working.cancel()

        thread = threading.Thread(target=loop.run_until_complete, args=(until_stopped(),), daemon=True)
        thread.start()
        wait_until(lambda: sandbox.streams)
        yield
        loop.call_soon_threadsafe(stopped.set)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    return listening


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that happens in another thread."""
    ticking = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if condition():
            return
        ticking.wait(0.02)
    raise AssertionError("it did not happen in time")


def test_the_sdk_receives_events_and_acknowledges_them(sandbox: Sandbox, listening: Any) -> None:
    handler = Handler()
    with listening(sandbox, handler):
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


def test_what_the_sdk_asks_for_is_what_this_package_asks_for(sandbox: Sandbox, listening: Any) -> None:
    from airflow_provider_dingconf.dingtalk.events import open_call
    from airflow_provider_dingconf.dingtalk.tokens import App

    with listening(sandbox, Handler()):
        (call,) = sandbox.calls_of("stream")
    asked = open_call(App(sandbox.client_id, sandbox.client_secret)).request()
    assert (call.method, call.path) == (asked.method, asked.target)
    # Their own names, and an address of this machine, which the SDK for Node does not send either.
    own = {"ua", "localIp"}
    body = json.loads(asked.content or b"")
    assert {**call.json(), "ua": "", "localIp": ""} == {**body, "ua": "", "localIp": ""}
    assert own >= call.json().keys() - (body.keys() - own)


def test_the_sdk_gets_an_event_again_that_it_could_not_handle(listening: Any) -> None:
    handler = Handler(AckMessage.STATUS_SYSTEM_EXCEPTION)
    with Sandbox(redelivery=1.0) as sandbox, listening(sandbox, handler):
        event_id = sandbox.push_event("anything", {})
        wait_until(lambda: sandbox.events and sandbox.events[0].acknowledged)
        assert [event.headers.event_id for event in handler.events] == [event_id, event_id]
        assert sandbox.events[0].acknowledgements == ["code 500", "SUCCESS"]


def test_the_sdk_connects_again_when_dingtalk_says_so(sandbox: Sandbox, listening: Any) -> None:
    handler = Handler()
    with listening(sandbox, handler):
        sandbox.disconnect_streams()
        wait_until(lambda: len(sandbox.calls_of("connect")) == 2 and sandbox.streams == 1)
        sandbox.push_event("anything", {})
        wait_until(lambda: sandbox.events and sandbox.events[0].acknowledged)
    assert len(handler.events) == 1

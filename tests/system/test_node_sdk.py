"""The sandbox and DingTalk's SDK for Node understand each other: a second witness for events."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_processes import Component, output_of, running, wait_for

PACKAGES = ("dingtalk-stream@2.1.5",)
PROGRAM = Path(__file__).with_name("node_sdk.mjs")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program, beside the SDK; Node and npm come from the system."""
    directory = tmp_path_factory.mktemp("node")
    options = ["--prefix", str(directory), "--no-audit", "--no-fund", "--ignore-scripts"]
    output_of(["npm", "install", *options, *PACKAGES], seconds=300)
    return Path(shutil.copy(PROGRAM, directory))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(redelivery=0.5) as made:
        yield made


@pytest.fixture
def listening(program: Path, sandbox: Sandbox, tmp_path: Path) -> Iterator[Component]:
    """Return the SDK at work, connected to the sandbox."""
    command = ["node", str(program), sandbox.url, sandbox.client_id]
    secret = {"CLIENT_SECRET": sandbox.client_secret}
    with running("node", command, os.environ | secret, tmp_path) as component:
        component.wait_for(lambda: sandbox.streams == 1, "connection")
        yield component


def events(component: Component) -> list[Any]:
    return [json.loads(line) for line in component.output.splitlines() if line.startswith("{")]


def wait_until_acknowledged(sandbox: Sandbox) -> None:
    def acknowledged() -> bool:
        return bool(sandbox.events) and all(event.acknowledged for event in sandbox.events)

    wait_for(acknowledged, "acknowledgement")


def test_the_sdk_for_node_receives_events_and_acknowledges_them(
    listening: Component, sandbox: Sandbox
) -> None:
    meeting = sandbox.create_conference("周会")
    sandbox.join(meeting, "somebody")
    sandbox.end(meeting)
    wait_until_acknowledged(sandbox)
    started, joined, ended = events(listening)
    assert [one["eventType"] for one in (started, joined, ended)] == [
        "meeting_status_change",
        "meeting_member_status_change",
        "meeting_status_change",
    ]
    assert started["data"]["openConfModel"]["title"] == "周会"
    assert (started["data"]["changeScene"], ended["data"]["changeScene"]) == (
        "conference_created",
        "conference_closed",
    )
    assert [event.acknowledgements for event in sandbox.events] == [["SUCCESS"]] * 3


def test_the_sdk_for_node_gets_an_event_again_that_it_put_off(listening: Component, sandbox: Sandbox) -> None:
    event_id = sandbox.push_event("later", {})
    wait_until_acknowledged(sandbox)
    assert [(one["eventId"], one["later"]) for one in events(listening)] == [
        (event_id, True),
        (event_id, False),
    ]
    assert sandbox.events[0].acknowledgements == ["LATER", "SUCCESS"]


def test_the_sdk_for_node_connects_again_when_the_connection_is_closed(
    listening: Component, sandbox: Sandbox
) -> None:
    sandbox.disconnect_streams()
    wait_for(lambda: len(sandbox.calls_of("connect")) == 2 and sandbox.streams == 1, "second connection")
    sandbox.push_event("anything", {})
    wait_until_acknowledged(sandbox)

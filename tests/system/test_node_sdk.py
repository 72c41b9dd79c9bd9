"""The sandbox and DingTalk's SDK for Node understand each other: a second witness for events."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_processes import output_of, running, wait_for

SDK = "dingtalk-stream@2.1.5"
PROGRAM = Path(__file__).with_name("node_sdk.mjs")
MEETING, MEMBER = "meeting_status_change", "meeting_member_status_change"


def wait_until_acknowledged(sandbox: Sandbox) -> None:
    wait_for(lambda: all(event.acknowledged for event in sandbox.events), "acknowledgement")


def test_the_sdk_for_node_receives_events_and_acknowledges_them(tmp_path: Path) -> None:
    """Also one that it puts off, and one that comes after the connection was closed."""
    options = ["--prefix", str(tmp_path), "--no-audit", "--no-fund", "--ignore-scripts"]
    output_of(["npm", "install", *options, SDK], seconds=300)
    program = shutil.copy(PROGRAM, tmp_path)  # beside the SDK
    with Sandbox(redelivery=0.5) as sandbox:
        command = ["node", program, sandbox.url, sandbox.client_id]
        secret = {"CLIENT_SECRET": sandbox.client_secret}
        with running("node", command, os.environ | secret, tmp_path) as node:
            node.wait_for(lambda: sandbox.streams == 1, "connection")
            meeting = sandbox.create_conference("周会")
            sandbox.join(meeting, "somebody")
            sandbox.end(meeting)
            wait_until_acknowledged(sandbox)
            postponed = sandbox.push_event("later", {})
            wait_until_acknowledged(sandbox)
            sandbox.disconnect_streams()
            wait_for(
                lambda: len(sandbox.calls_of("connect")) == 2 and sandbox.streams == 1, "second connection"
            )
            last = sandbox.push_event("anything", {})
            wait_until_acknowledged(sandbox)
            printed = [json.loads(line) for line in node.output.splitlines() if line.startswith("{")]

    started, joined, ended = printed[:3]
    assert [each["eventType"] for each in (started, joined, ended)] == [MEETING, MEMBER, MEETING]
    assert started["data"]["openConfModel"]["title"] == "周会"
    scenes = started["data"]["changeScene"], ended["data"]["changeScene"]
    assert scenes == ("conference_created", "conference_closed")
    received = [(each["eventId"], each["later"]) for each in printed[3:]]
    assert received == [(postponed, True), (postponed, False), (last, False)]
    acknowledgements = [event.acknowledgements for event in sandbox.events]
    assert acknowledgements == [*[["SUCCESS"]] * 3, ["LATER", "SUCCESS"], ["SUCCESS"]]

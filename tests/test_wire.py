"""What goes over the wire is what DingTalk's official SDK sends: one sandbox records both."""

from __future__ import annotations

import asyncio
import copy
import re
import runpy
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.dingtalk.hosting import MEMBERS
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.operators import (
    CloseConferenceOperator,
    ConferenceMembersOperator,
    CreateConferenceOperator,
)
from airflow_provider_dingconf.sandbox import Sandbox

pytest.importorskip("alibabacloud_dingtalk")

from alibabacloud_dingtalk.conference_1_0 import models as conference_models
from alibabacloud_dingtalk.conference_1_0.client import Client as ConferenceClient
from alibabacloud_dingtalk.oauth2_1_0 import models as token_models
from alibabacloud_dingtalk.oauth2_1_0.client import Client as TokenClient
from alibabacloud_tea_openapi.models import Config
from alibabacloud_tea_util.models import RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("conn")

RUNTIME = RuntimeOptions(connect_timeout=60_000, read_timeout=60_000)
TOKEN = "x-acs-dingtalk-access-token"
OF_THE_LIBRARY = {"user-agent", "accept-encoding", "connection"}
"""Headers of the HTTP library, which neither DingTalk nor this package chooses."""


def wire(call: Any) -> dict[str, Any]:
    """Return what came over the wire, but for the HTTP library's headers."""
    headers = sorted(
        (name.lower(), value) for name, value in call.headers if name.lower() not in OF_THE_LIBRARY
    )
    return {"method": call.method, "path": call.path, "headers": headers, "body": call.body}


def by_sdk(sandbox: Sandbox, name: str, token: str | None, *args: Any, **fields: Any) -> Any:
    """Make a call by the SDK, and return the body of the response.

    :param name: of the call, such as ``LockConference``.
    :param token: None for a call that fetches one.
    :param args: what is part of the path.
    :param fields: of the request; without any, the SDK's method takes no request.
    """
    client, models = (ConferenceClient, conference_models) if token else (TokenClient, token_models)
    method = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() + "_with_options"
    request = [getattr(models, f"{name}Request")(**fields)] if fields else []
    headers: Any = {}
    if token:
        headers = getattr(models, f"{name}Headers")(x_acs_dingtalk_access_token=token)
    made = client(Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http"))
    return getattr(made, method)(*args, *request, headers, RUNTIME).body


def same_by_sdk(sandbox: Sandbox, kind: str, name: str, *args: Any, **fields: Any) -> Any:
    """Make the one call of a kind that was recorded again by the SDK, check that both are the same on the wire."""
    (ours,) = sandbox.calls_of(kind)
    body = by_sdk(sandbox, name, ours.header(TOKEN), *args, **fields)
    _, theirs = sandbox.calls_of(kind)
    assert wire(ours) == wire(theirs)
    return body


@pytest.mark.parametrize(
    ("kind", "name", "args", "fields"),
    [
        (
            *("internal", "GetAccessToken", []),
            {"app_key": Sandbox.client_id, "app_secret": Sandbox.client_secret},
        ),
        (
            *("third_party", "GetCorpAccessToken", []),
            {
                "suite_key": Sandbox.suite_key,
                "suite_secret": Sandbox.suite_secret,
                "auth_corp_id": Sandbox.corp_id,
                "suite_ticket": Sandbox.suite_ticket,
            },
        ),
        (
            *("unified", "GetToken", [Sandbox.corp_id]),
            {
                "client_id": Sandbox.client_id,
                "client_secret": Sandbox.client_secret,
                "grant_type": "client_credentials",
            },
        ),
    ],
    ids=["internal", "third party", "unified"],
)
def test_a_token_is_fetched_as_the_sdk_fetches_it(
    face: Any, conn: Any, sandbox: Sandbox, kind: str, name: str, args: list[str], fields: dict[str, str]
) -> None:
    conn(kind)
    face.do("lock_conference", "sandbox-open")
    same_by_sdk(sandbox, "token", name, *args, **fields)


@pytest.mark.parametrize("action", ["lock", "unlock"])
@pytest.mark.parametrize("conference_id", ["meeting", "-._~!$&'()*+,;=:@", "...", "a..b"])
def test_a_meeting_is_locked_as_the_sdk_locks_it(
    face: Any, sandbox: Sandbox, action: str, conference_id: str
) -> None:
    sandbox.create_conference(conference_id=conference_id)
    face.do(f"{action}_conference", conference_id)
    same_by_sdk(sandbox, action, "LockConference", conference_id, action=action)
    assert sandbox.calls[-1].path == f"/v1.0/conference/videoConferences/{conference_id}/lock"


READS: dict[str, tuple[Callable[[Any], Any], str, list[str], dict[str, Any], str]] = {
    "info": (
        lambda hook: hook.get_conference("meeting"),
        *("QueryConferenceInfo", ["meeting"], {}, "conf_info"),
    ),
    "query": (
        lambda hook: asyncio.run(hook._connect().running_of(["meeting"]))["meeting"],
        *("QueryConferenceInfoBatch", [], {"conference_id_list": ["meeting"]}, "infos"),
    ),
    "list": (
        lambda hook: next(hook.running_conferences()),
        *("QueryOrgConferenceList", [], {"max_results": 20}, "on_going_conf_list"),
    ),
    "roomCode": (
        lambda hook: hook.get_conference(room_code="1234567890"),
        *("QueryConferenceInfoByRoomCode", ["1234567890"], {"max_results": 20}, "conference_list"),
    ),
    "schedule": (
        lambda hook: hook.get_conference(schedule_conference_id="schedule-1"),
        *("QueryScheduleConferenceInfo", ["schedule-1"], {"max_results": 20}, "conference_list"),
    ),
}
"""By kind of call: how the hook makes it, the SDK's name, the path's and other fields, and the response's field."""


@pytest.mark.parametrize("call", READS)
def test_a_meeting_is_asked_for_as_the_sdk_asks_and_read_as_the_sdk_reads(
    sandbox: Sandbox, call: str
) -> None:
    ids = {"conference_id": "meeting", "room_code": "1234567890", "schedule_conference_id": "schedule-1"}
    sandbox.create_conference("周会", **ids)
    by_hook, name, args, fields, field = READS[call]
    ours = by_hook(DingTalkConferenceHook())
    found = getattr(same_by_sdk(sandbox, call, name, *args, **fields), field)
    theirs = found[0] if isinstance(found, list) else found
    assert (ours.conference_id, ours.title) == (theirs.conference_id, theirs.title)
    assert ours.status.value == "started"
    assert round(ours.start_time.timestamp() * 1000) == theirs.start_time
    for name in ("room_code", "creator_id", "schedule_conference_id", "biz_type"):
        assert getattr(ours, name) == getattr(theirs, name, None)
    assert ours.join_url == getattr(theirs, "external_link_url", None)


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "invite_users": (
        "InviteUsers",
        {
            "invitee_list": [conference_models.InviteUsersRequestInviteeList(nick="Guest", union_id="ann")],
            "union_id": "chris",
        },
    ),
    "mute_all": ("MuteAll", {"action": "mute", "force_mute": True}),
    "start_recording": ("StartCloudRecord", {"union_id": "chris"}),
    "stop_recording": ("StopCloudRecord", {"union_id": "chris"}),
    "kick_members": (
        "KickMembers",
        {
            "forbidden_rejoin": True,
            "user_list": [conference_models.KickMembersRequestUserList(union_id="ann")],
        },
    ),
}


@pytest.mark.parametrize("task_id", CALLS)
@pytest.mark.parametrize("conference_id", ["m", "a~b.c_d-e"])
def test_the_operator_sends_what_the_sdk_sends(sandbox: Sandbox, task_id: str, conference_id: str) -> None:
    example = runpy.run_path(str(Path(__file__).parents[1] / "example_dags" / "example_any_call.py"))
    task = copy.copy(example[task_id])
    params = {"conference_id": conference_id, "host_id": "chris", "guest_id": "ann"}
    task.render_template_fields({"params": params})
    xcom = task.execute({})
    name, fields = CALLS[task_id]
    assert xcom == same_by_sdk(sandbox, "other", name, conference_id, **fields).to_map()


# The meetings that a DAG hosts


def test_a_meeting_is_created_as_the_sdk_creates_it(sandbox: Sandbox) -> None:
    task = CreateConferenceOperator(
        task_id="create", title="周会", creator_id="chris", invite=["ann"], with_password=True
    )
    ours: Any = task.execute({})
    theirs = same_by_sdk(
        sandbox, "create", "CreateVideoConference",
        user_id="chris", conf_title="周会", invite_user_ids=["ann"], invite_caller=True,
    )  # fmt: skip
    for name, value in {"room_code": theirs.room_code, "join_url": theirs.external_link_url}.items():
        assert isinstance(ours[name], type(value))
    assert sandbox.conference(ours["conference_id"]).room_code == ours["room_code"]
    assert sandbox.conference(theirs.conference_id).password == theirs.conference_password


def test_the_members_are_read_as_the_sdk_reads_them(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(creator_id="chris+/=")
    for user in ("chris+/=", "ann"):
        sandbox.join(meeting, user)
    sandbox.leave(meeting, "ann")
    read: Any = ConferenceMembersOperator(task_id="members", conference_id=meeting).execute({})
    body = same_by_sdk(sandbox, "members", "QueryConferenceMembers", meeting, max_results=MEMBERS)
    same = ("union_id", "user_nick", "conference_id", "attend_status", "host", "co_host", "outer_org_member")
    for ours, theirs in zip(read, body.member_models, strict=True):
        for name in (*same, "pstn_join"):
            assert ours[name] == getattr(theirs, name)
        for name in ("join_time", "leave_time"):
            moment = ours[name] and datetime.fromisoformat(ours[name]).timestamp() * 1000
            assert (round(moment) if moment else None) == getattr(theirs, name)
    assert read[1]["duration"] * 1000 == body.member_models[1].duration


def test_a_meeting_is_closed_as_the_sdk_closes_it(sandbox: Sandbox) -> None:
    sandbox.create_conference(conference_id="meeting", creator_id="chris+/=")
    task = CloseConferenceOperator(task_id="close", conference_id="meeting", creator_id="chris+/=")
    result: Any = task.execute({})
    (ours,) = sandbox.calls_of("close")
    sandbox.create_conference(conference_id="another", creator_id="chris+/=")
    body = by_sdk(sandbox, "CloseVideoConference", ours.header(TOKEN), "another", union_id="chris+/=")
    assert (result["success"], body.code) == (True, 200)
    _, theirs = sandbox.calls_of("close")
    assert wire(ours) == wire(theirs) | {"path": theirs.path.replace("another", "meeting")}

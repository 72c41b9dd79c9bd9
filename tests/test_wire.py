"""What goes over the wire is what DingTalk's official SDK sends: the two are recorded by one sandbox."""

from __future__ import annotations

import copy
import re
import runpy
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.dingtalk.hosting import MEMBERS
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

RUNTIME = RuntimeOptions(connect_timeout=60_000, read_timeout=60_000)
TOKEN = "x-acs-dingtalk-access-token"

# Of the HTTP library, and neither DingTalk's nor ours to say.
OF_THE_LIBRARY = {"user-agent", "accept-encoding", "connection"}


def wire(call: Any) -> dict[str, Any]:
    """Return what came over the wire, but for the HTTP library's own headers."""
    headers = sorted(
        (name.lower(), value) for name, value in call.headers if name.lower() not in OF_THE_LIBRARY
    )
    return {"method": call.method, "path": call.path, "headers": headers, "body": call.body}


def sdk_token(sandbox: Sandbox, kind: str) -> None:
    """Buy an access token by the SDK."""
    client = TokenClient(Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http"))
    if kind == "internal":
        client.get_access_token_with_options(
            token_models.GetAccessTokenRequest(app_key=Sandbox.client_id, app_secret=Sandbox.client_secret),
            {},
            RUNTIME,
        )
    elif kind == "third_party":
        request = token_models.GetCorpAccessTokenRequest(
            suite_key=Sandbox.suite_key,
            suite_secret=Sandbox.suite_secret,
            auth_corp_id=Sandbox.corp_id,
            suite_ticket=Sandbox.suite_ticket,
        )
        client.get_corp_access_token_with_options(request, {}, RUNTIME)
    else:
        unified = token_models.GetTokenRequest(
            client_id=Sandbox.client_id,
            client_secret=Sandbox.client_secret,
            grant_type="client_credentials",
        )
        client.get_token_with_options(Sandbox.corp_id, unified, {}, RUNTIME)


@pytest.mark.parametrize("kind", ["internal", "third_party", "unified"])
def test_a_token_is_fetched_as_the_sdk_fetches_it(
    face: Any, conn: Callable[..., None], sandbox: Sandbox, kind: str
) -> None:
    conn(kind)
    face.do("lock_conference", "sandbox-open")
    sdk_token(sandbox, kind)
    ours, theirs = sandbox.calls_of("token")
    assert wire(ours) == wire(theirs)


@pytest.mark.parametrize("action", ["lock", "unlock"])
@pytest.mark.parametrize("conference_id", ["sandbox-open", "a~b.c_d-e", "!$&'()*+,;=:@"])
def test_a_meeting_is_locked_as_the_sdk_locks_it(
    face: Any, conn: Callable[..., None], sandbox: Sandbox, action: str, conference_id: str
) -> None:
    if conference_id != "sandbox-open":
        sandbox.create_conference(conference_id=conference_id)
    face.do(f"{action}_conference", conference_id)
    (ours,) = sandbox.calls_of(action)
    client = ConferenceClient(Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http"))
    client.lock_conference_with_options(
        conference_id,
        conference_models.LockConferenceRequest(action=action),
        conference_models.LockConferenceHeaders(x_acs_dingtalk_access_token=ours.header(TOKEN)),
        RUNTIME,
    )
    _, theirs = sandbox.calls_of(action)
    assert wire(ours) == wire(theirs)


def test_nothing_but_the_token_says_who_calls(face: Any, conn: Callable[..., None], sandbox: Sandbox) -> None:
    face.do("lock_conference", "sandbox-open")
    (call,) = sandbox.calls_of("lock")
    names = {name for name, _ in wire(call)["headers"]}
    assert names == {"host", "accept", "content-type", "content-length", TOKEN}


def sdk_reads(client: ConferenceClient, call: str, meeting: str, token: str) -> Any:
    """Make a reading call by the SDK."""
    made = {
        "info": lambda: client.query_conference_info_with_options(
            meeting,
            conference_models.QueryConferenceInfoHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
        "query": lambda: client.query_conference_info_batch_with_options(
            conference_models.QueryConferenceInfoBatchRequest(conference_id_list=[meeting]),
            conference_models.QueryConferenceInfoBatchHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
        "list": lambda: client.query_org_conference_list_with_options(
            conference_models.QueryOrgConferenceListRequest(max_results=20),
            conference_models.QueryOrgConferenceListHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
        "roomCode": lambda: client.query_conference_info_by_room_code_with_options(
            "1234567890",
            conference_models.QueryConferenceInfoByRoomCodeRequest(max_results=20),
            conference_models.QueryConferenceInfoByRoomCodeHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
        "schedule": lambda: client.query_schedule_conference_info_with_options(
            "schedule-1",
            conference_models.QueryScheduleConferenceInfoRequest(max_results=20),
            conference_models.QueryScheduleConferenceInfoHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
    }
    return made[call]().body


@pytest.mark.parametrize("call", ["info", "query", "list", "roomCode", "schedule"])
def test_a_meeting_is_asked_for_as_the_sdk_asks_and_read_as_the_sdk_reads(
    conn: Callable[..., None], sandbox: Sandbox, call: str
) -> None:
    import asyncio

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    meeting = sandbox.create_conference("周会", room_code="1234567890", schedule_conference_id="schedule-1")
    with_hook = {
        "info": lambda hook: hook.get_conference(meeting),
        "query": lambda hook: asyncio.run(hook._connect().running_of([meeting]))[meeting],
        "list": lambda hook: next(hook.running_conferences()),
        "roomCode": lambda hook: hook.get_conference(room_code="1234567890"),
        "schedule": lambda hook: hook.get_conference(schedule_conference_id="schedule-1"),
    }
    read = with_hook[call](DingTalkConferenceHook())
    (ours,) = sandbox.calls_of(call)
    client = ConferenceClient(Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http"))
    body = sdk_reads(client, call, meeting, ours.header(TOKEN) or "")
    _, theirs = sandbox.calls_of(call)
    assert wire(ours) == wire(theirs)
    if call == "info":
        told = body.conf_info
    else:
        (told,) = (
            getattr(body, "infos", None) or getattr(body, "conference_list", None) or body.on_going_conf_list
        )
    assert (read.conference_id, read.title, read.status.value) == (told.conference_id, told.title, "started")
    assert round(read.start_time.timestamp() * 1000) == told.start_time
    for name in ("room_code", "creator_id", "schedule_conference_id", "biz_type"):
        assert getattr(read, name) == getattr(told, name, None)
    assert read.join_url == getattr(told, "external_link_url", None)


SDK_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "invite_users": (
        "InviteUsers",
        {
            "invitee_list": [
                conference_models.InviteUsersRequestInviteeList(nick="Guest", union_id="ann"),
            ],
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


@pytest.mark.parametrize("task_id", SDK_CALLS)
@pytest.mark.parametrize("conference_id", ["m", "a~b.c_d-e"])
def test_the_operator_sends_what_the_sdk_sends(
    conn: Callable[..., None], sandbox: Sandbox, task_id: str, conference_id: str
) -> None:
    example = runpy.run_path(str(Path(__file__).parents[1] / "example_dags" / "example_any_call.py"))
    task = copy.copy(example[task_id])
    params = {"conference_id": conference_id, "host_id": "chris", "guest_id": "ann"}
    task.render_template_fields({"params": params})
    xcom = task.execute({})
    (ours,) = sandbox.calls_of("other")

    name, fields = SDK_CALLS[task_id]
    method = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() + "_with_options"
    client = ConferenceClient(Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http"))
    response = getattr(client, method)(
        conference_id,
        getattr(conference_models, f"{name}Request")(**fields),
        getattr(conference_models, f"{name}Headers")(x_acs_dingtalk_access_token=ours.header(TOKEN)),
        RUNTIME,
    )
    _, theirs = sandbox.calls_of("other")
    assert wire(ours) == wire(theirs)
    assert xcom == response.body.to_map()


def sdk_hosts(sandbox: Sandbox, call: str, meeting: str, token: str) -> Any:
    """Make a call of a host by the SDK."""
    client = ConferenceClient(Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http"))
    made = {
        "create": lambda: client.create_video_conference_with_options(
            conference_models.CreateVideoConferenceRequest(
                user_id="chris", conf_title="周会", invite_user_ids=["ann"], invite_caller=True
            ),
            conference_models.CreateVideoConferenceHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
        "members": lambda: client.query_conference_members_with_options(
            meeting,
            conference_models.QueryConferenceMembersRequest(max_results=MEMBERS),
            conference_models.QueryConferenceMembersHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
        "close": lambda: client.close_video_conference_with_options(
            meeting,
            conference_models.CloseVideoConferenceRequest(union_id="chris+/="),
            conference_models.CloseVideoConferenceHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        ),
    }
    return made[call]().body


@pytest.mark.parametrize("call", ["create", "members", "close"])
def test_a_host_calls_as_the_sdk_does_and_reads_what_the_sdk_reads(
    conn: Callable[..., None], sandbox: Sandbox, call: str
) -> None:
    meetings = [sandbox.create_conference(creator_id="chris+/=") for _ in range(2)]
    for user in ("chris+/=", "ann"):
        sandbox.join(meetings[0], user)
    sandbox.leave(meetings[0], "ann")
    operators = {
        "create": CreateConferenceOperator(
            task_id="create", title="周会", creator_id="chris", invite=["ann"], with_password=True
        ),
        "members": ConferenceMembersOperator(task_id="members", conference_id=meetings[0]),
        "close": CloseConferenceOperator(task_id="close", conference_id=meetings[0], creator_id="chris+/="),
    }
    read: Any = operators[call].execute({})
    (ours,) = sandbox.calls_of(call)
    theirs_for = meetings[0] if call == "members" else meetings[1]
    body = sdk_hosts(sandbox, call, theirs_for, ours.header(TOKEN) or "")
    _, theirs = sandbox.calls_of(call)
    assert wire(ours) == wire(theirs) | ({"path": ours.path} if call == "close" else {})
    assert ours.path == theirs.path.replace(theirs_for, meetings[0])
    if call == "create":
        made = {"room_code": body.room_code, "join_url": body.external_link_url}
        assert {name: type(value) for name, value in made.items()} == {
            name: type(read[name]) for name in made
        }
        assert sandbox.conference(read["conference_id"]).room_code == read["room_code"]
        assert sandbox.conference(body.conference_id).password == body.conference_password
    elif call == "members":
        for ours_read, told in zip(read, body.member_models, strict=True):
            same = ("union_id", "user_nick", "conference_id", "attend_status", "host", "co_host",
                    "outer_org_member", "pstn_join")  # fmt: skip
            assert [ours_read[name] for name in same] == [getattr(told, name) for name in same]
            for name in ("join_time", "leave_time"):
                moment = ours_read[name] and datetime.fromisoformat(ours_read[name]).timestamp() * 1000
                assert (round(moment) if moment else None) == getattr(told, name)
        assert read[1]["duration"] * 1000 == body.member_models[1].duration
    else:
        assert (read["success"], body.code) == (True, 200)

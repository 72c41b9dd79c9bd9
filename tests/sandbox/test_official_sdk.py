"""The sandbox and DingTalk's own SDK understand each other.

The SDK is the witness that the sandbox speaks as DingTalk does: it was written by neither of the two sides
that are tested here.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from typing import Any

import pytest
import requests

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS, LOCAL_CODES
from airflow_provider_dingconf.dingtalk.errors import CredentialsError
from airflow_provider_dingconf.sandbox import Fault, Sandbox

pytest.importorskip("alibabacloud_dingtalk")

from alibabacloud_dingtalk.conference_1_0 import models as conference_models
from alibabacloud_dingtalk.conference_1_0.client import Client as ConferenceClient
from alibabacloud_dingtalk.oauth2_1_0 import models as token_models
from alibabacloud_dingtalk.oauth2_1_0.client import Client as TokenClient
from alibabacloud_tea_openapi.models import Config
from alibabacloud_tea_util.models import RuntimeOptions
from Tea.exceptions import TeaException

SENT = [row for row in ERRORS.values() if row.code not in LOCAL_CODES]
LOCK_ERRORS = [row for row in SENT if not issubclass(row.error, CredentialsError)]
TOKEN_ERRORS = [row for row in SENT if issubclass(row.error, CredentialsError)]
RUNTIME = RuntimeOptions(connect_timeout=60_000, read_timeout=60_000)


def config(sandbox: Sandbox) -> Config:
    return Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http")


def lock_arguments(sandbox: Sandbox, conference_id: str, action: str) -> tuple[Any, ...]:
    headers = conference_models.LockConferenceHeaders(x_acs_dingtalk_access_token=sandbox.issue_token())
    return conference_id, conference_models.LockConferenceRequest(action=action), headers, RUNTIME


def lock(sandbox: Sandbox, conference_id: str, action: str = "lock") -> Any:
    client = ConferenceClient(config(sandbox))
    return client.lock_conference_with_options(*lock_arguments(sandbox, conference_id, action))


def internal_token(client: TokenClient, secret: str = Sandbox.client_secret) -> Any:
    return client.get_access_token_with_options(
        token_models.GetAccessTokenRequest(app_key=Sandbox.client_id, app_secret=secret), {}, RUNTIME
    )


def corp_token(client: TokenClient) -> Any:
    request = token_models.GetCorpAccessTokenRequest(
        suite_key=Sandbox.suite_key,
        suite_secret=Sandbox.suite_secret,
        auth_corp_id=Sandbox.corp_id,
        suite_ticket=Sandbox.suite_ticket,
    )
    return client.get_corp_access_token_with_options(request, {}, RUNTIME)


def unified_token(client: TokenClient) -> Any:
    request = token_models.GetTokenRequest(
        client_id=Sandbox.client_id, client_secret=Sandbox.client_secret, grant_type="client_credentials"
    )
    return client.get_token_with_options(Sandbox.corp_id, request, {}, RUNTIME)


def test_the_sdk_locks_and_unlocks(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    for action in ("lock", "unlock"):
        answer = lock(sandbox, meeting, action)
        assert (answer.status_code, answer.body.success) == (200, True)
        assert sandbox.conference(meeting).locked is (action == "lock")


def test_the_sdk_locks_asynchronously(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    client = ConferenceClient(config(sandbox))
    arguments = lock_arguments(sandbox, meeting, "lock")
    answer = asyncio.run(client.lock_conference_with_options_async(*arguments))
    assert answer.body.success is True
    assert sandbox.conference(meeting).locked


def test_what_the_sdk_puts_on_the_wire_is_recorded(sandbox: Sandbox) -> None:
    lock(sandbox, "sandbox-open")
    (call,) = sandbox.calls
    assert (call.method, call.path) == ("POST", "/v1.0/conference/videoConferences/sandbox-open/lock")
    assert call.header("content-type") == "application/json; charset=utf-8"
    assert call.header("accept") == "application/json"
    assert call.body == b'{"action":"lock"}'


@pytest.mark.parametrize("ask", [internal_token, corp_token])
def test_the_sdk_gets_a_token(sandbox: Sandbox, ask: Any) -> None:
    body = ask(TokenClient(config(sandbox))).body
    assert (len(body.access_token), body.expire_in) == (32, 7200)


def test_the_sdk_gets_a_token_by_the_unified_call(sandbox: Sandbox) -> None:
    body = unified_token(TokenClient(config(sandbox))).body
    assert (len(body.access_token), body.expires_in) == (32, 7200)


@pytest.mark.parametrize("row", LOCK_ERRORS, ids=lambda row: row.code)
def test_the_sdk_raises_every_error_of_a_lock_call(sandbox: Sandbox, row: Any) -> None:
    with pytest.raises(TeaException) as raised:
        lock(sandbox, f"sandbox-{row.code}")
    assert_says(raised.value, sandbox, row.code, next(iter(row.http_status), 400))


@pytest.mark.parametrize("row", TOKEN_ERRORS, ids=lambda row: row.code)
def test_the_sdk_raises_every_error_of_a_token_call(sandbox: Sandbox, row: Any) -> None:
    sandbox.fail(Fault(call="token", code=row.code))
    with pytest.raises(TeaException) as raised:
        internal_token(TokenClient(config(sandbox)))
    assert_says(raised.value, sandbox, row.code, row.http_status[0])


def assert_says(error: TeaException, sandbox: Sandbox, code: str, status: int) -> None:
    request_id = sandbox.calls[-1].request_id
    assert error.code == code
    assert error.message == f"code: {status}, {code} request id: {request_id}"
    assert error.data["requestid"] == request_id
    assert error.data["statusCode"] == status
    denied = {"accessdenieddetail"} if "PermissionDenied" in code else set()
    assert error.data.keys() - {"statusCode"} == {"code", "requestid", "message"} | denied


def test_the_sdk_refuses_wrong_credentials_as_dingtalk_does(sandbox: Sandbox) -> None:
    with pytest.raises(TeaException) as raised:
        internal_token(TokenClient(config(sandbox)), secret="wrong")
    assert raised.value.code == "invalidClientIdOrSecret"


def test_the_sdk_reads_a_meeting_and_the_running_ones(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference("周会")
    client = ConferenceClient(config(sandbox))
    token = sandbox.issue_token()

    headers = conference_models.QueryConferenceInfoHeaders(x_acs_dingtalk_access_token=token)
    info = client.query_conference_info_with_options(meeting, headers, RUNTIME).body.conf_info
    assert (info.title, info.status, info.conference_id) == ("周会", 2, meeting)

    batch = client.query_conference_info_batch_with_options(
        conference_models.QueryConferenceInfoBatchRequest(conference_id_list=[meeting]),
        conference_models.QueryConferenceInfoBatchHeaders(x_acs_dingtalk_access_token=token),
        RUNTIME,
    )
    assert [found.title for found in batch.body.infos] == ["周会"]

    page = client.query_org_conference_list_with_options(
        conference_models.QueryOrgConferenceListRequest(max_results=1),
        conference_models.QueryOrgConferenceListHeaders(x_acs_dingtalk_access_token=token),
        RUNTIME,
    ).body
    assert (page.total_count, page.has_more, page.next_token) == (1, False, None)
    assert page.on_going_conf_list[0].room_code == info.room_code


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def sdk_calls() -> list[tuple[str, str, str]]:
    """Return the name, the method and the path of every conference call of the SDK."""
    source = inspect.getsource(ConferenceClient)
    pattern = r"def (\w+)_with_options\(\n.*?pathname=f?'([^']+)'.*?method='(\w+)'"
    found = re.findall(pattern, source, re.DOTALL)
    return [(name, method, re.sub(r"\{\w+\}", "{}", path)) for name, path, method in found]


def keys(model: type[Any]) -> dict[str, type[Any] | None]:
    """Return the keys that a model of the SDK reads, with the models of those that hold objects."""
    wire = re.findall(r"result\['(\w+)'\]", inspect.getsource(model.to_map))
    parameters = inspect.signature(model.__init__).parameters
    annotated = {name.replace("_", "").lower(): str(one.annotation) for name, one in parameters.items()}
    found = {}
    for key in wire:
        named = re.search(r"\b(\w+ResponseBody\w+)\b", annotated[key.lower()])
        found[key] = getattr(conference_models, named[1]) if named else None
    return found


MAY_BE_MISSING = {"endTime", "leaveTime", "nextToken"}
"""Of a meeting that runs, a member who is still there, the last page of a list."""


def check(model: type[Any], body: Any) -> None:
    """Check that an object has the keys that the SDK knows, and no others."""
    for one in body if isinstance(body, list) else [body]:
        known = keys(model)
        assert one.keys() <= known.keys()
        assert known.keys() - one.keys() <= MAY_BE_MISSING
        for key, inner in known.items():
            if inner and one.get(key):
                check(inner, one[key])


BODIES: dict[str, Any] = {
    "create_video_conference": {"userId": "chris", "confTitle": "x"},
    "query_conference_info_batch": {"conferenceIdList": ["m"]},
    "lock_conference": {"action": "lock"},
}


@pytest.mark.parametrize(("name", "method", "path"), sdk_calls(), ids=lambda value: value)
def test_each_response_has_exactly_the_fields_that_the_sdk_knows(
    sandbox: Sandbox, name: str, method: str, path: str
) -> None:
    running = {"room_code": "1", "schedule_conference_id": "s", "creator_id": "chris"}
    for identity in ("m", "other"):
        sandbox.create_conference(conference_id=identity, **running)
        sandbox.join(identity, "ann")
    if name in {
        "query_conference_info",
        "query_conference_info_by_room_code",
        "query_schedule_conference_info",
    }:
        sandbox.end("m")
    value = {
        "roomCodes/{}": "roomCodes/1",
        "Conferences/scheduleConferences/{}": "Conferences/scheduleConferences/s",
    }
    for template, filled in value.items():
        path = path.replace(template, filled)
    answer = requests.request(
        method,
        sandbox.url + path.replace("{}", "m"),
        params={"unionId": "chris", "maxResults": 1} if method != "POST" else None,
        json=BODIES.get(name, {}),
        headers={"x-acs-dingtalk-access-token": sandbox.issue_token()},
        timeout=60,
    )
    assert answer.status_code == 200
    assert sandbox.calls[-1].name != "unknown"
    check(getattr(conference_models, camel(name) + "ResponseBody"), answer.json())


def test_there_are_52_conference_calls() -> None:
    assert len(sdk_calls()) == 52


def test_the_sdk_creates_a_meeting_lists_its_members_and_closes_it(sandbox: Sandbox) -> None:
    client = ConferenceClient(config(sandbox))
    token = sandbox.issue_token()
    made = client.create_video_conference_with_options(
        conference_models.CreateVideoConferenceRequest(user_id="chris", conf_title="Exam"),
        conference_models.CreateVideoConferenceHeaders(x_acs_dingtalk_access_token=token),
        RUNTIME,
    ).body
    meeting = sandbox.conference(made.conference_id)
    assert (made.room_code, made.host_password) == (meeting.room_code, meeting.host_password)
    for user in ("chris", "ann"):
        sandbox.join(made.conference_id, user)
    sandbox.leave(made.conference_id, "ann")

    page = client.query_conference_members_with_options(
        made.conference_id,
        conference_models.QueryConferenceMembersRequest(max_results=1),
        conference_models.QueryConferenceMembersHeaders(x_acs_dingtalk_access_token=token),
        RUNTIME,
    ).body
    assert (page.total_count, page.next_token) == (2, "1")
    (host,) = page.member_models
    assert (host.union_id, host.host, host.attend_status) == ("chris", True, 3)

    def close() -> Any:
        return client.close_video_conference_with_options(
            made.conference_id,
            conference_models.CloseVideoConferenceRequest(union_id="chris"),
            conference_models.CloseVideoConferenceHeaders(x_acs_dingtalk_access_token=token),
            RUNTIME,
        )

    assert close().body.code == 200
    assert meeting.status == "ended"
    with pytest.raises(TeaException, match="resourceClose"):
        close()

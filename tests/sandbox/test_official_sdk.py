"""The sandbox and DingTalk's own SDK understand each other.

The SDK is the witness that the sandbox speaks as DingTalk does: it was written by neither of the two sides
that are tested here.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from functools import partial
from typing import Any

import pytest
import requests

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import CredentialsError
from airflow_provider_dingconf.sandbox import Fault, Sandbox

from .conftest import TOKEN_HEADER

pytest.importorskip("alibabacloud_dingtalk")

from alibabacloud_dingtalk.conference_1_0 import models as conference_models
from alibabacloud_dingtalk.conference_1_0.client import Client as ConferenceClient
from alibabacloud_dingtalk.oauth2_1_0 import models as token_models
from alibabacloud_dingtalk.oauth2_1_0.client import Client as TokenClient
from alibabacloud_tea_openapi.models import Config
from alibabacloud_tea_util.models import RuntimeOptions
from Tea.exceptions import TeaException

SENT = [row for row in ERRORS.values() if row.sent_by_dingtalk]
RUNTIME = RuntimeOptions(connect_timeout=60_000, read_timeout=60_000)


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def made(client: type[Any], sandbox: Sandbox) -> Any:
    return client(Config(endpoint=f"127.0.0.1:{sandbox.port}", protocol="http"))


def call(sandbox: Sandbox, name: str, *arguments: Any, suffix: str = "", **request: Any) -> Any:
    """Return the response to a conference call of the SDK, by the SDK's name of it."""
    token = sandbox.issue_token()
    headers = getattr(conference_models, f"{camel(name)}Headers")(x_acs_dingtalk_access_token=token)
    body = [getattr(conference_models, f"{camel(name)}Request")(**request)] if request else []
    method = getattr(made(ConferenceClient, sandbox), f"{name}_with_options{suffix}")
    return method(*arguments, *body, headers, RUNTIME)


def lock(sandbox: Sandbox, conference_id: str, action: str = "lock") -> Any:
    return call(sandbox, "lock_conference", conference_id, action=action)


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
    meeting = sandbox.create_conference(conference_id="m")
    for action in ("lock", "unlock"):
        response = lock(sandbox, meeting, action)
        assert (response.status_code, response.body.success) == (200, True)
        assert sandbox.conference(meeting).locked is (action == "lock")
    recorded, _ = sandbox.calls
    assert (recorded.method, recorded.path) == ("POST", "/v1.0/conference/videoConferences/m/lock")
    assert recorded.header("content-type") == "application/json; charset=utf-8"
    assert recorded.header("accept") == "application/json"
    assert recorded.body == b'{"action":"lock"}'


def test_the_sdk_locks_asynchronously(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    response = asyncio.run(call(sandbox, "lock_conference", meeting, suffix="_async", action="lock"))
    assert response.body.success is True
    assert sandbox.conference(meeting).locked


@pytest.mark.parametrize("ask", [internal_token, corp_token, unified_token])
def test_the_sdk_gets_a_token(sandbox: Sandbox, ask: Any) -> None:
    body = ask(made(TokenClient, sandbox)).body
    lifetime = body.expires_in if ask is unified_token else body.expire_in
    assert (len(body.access_token), lifetime) == (32, 7200)


@pytest.mark.parametrize("row", SENT, ids=lambda row: row.code)
def test_the_sdk_raises_every_error(sandbox: Sandbox, row: Any) -> None:
    if issubclass(row.error, CredentialsError):
        sandbox.fail(Fault(call="token", code=row.code))
        ask = partial(internal_token, made(TokenClient, sandbox))
    else:
        ask = partial(lock, sandbox, f"sandbox-{row.code}")
    with pytest.raises(TeaException) as raised:
        ask()
    request_id, status = sandbox.calls[-1].request_id, next(iter(row.http_status), 400)
    assert raised.value.code == row.code
    assert raised.value.message == f"code: {status}, {row.code} request id: {request_id}"
    data = raised.value.data
    assert (data["requestid"], data["statusCode"]) == (request_id, status)
    denied = {"accessdenieddetail"} if "PermissionDenied" in row.code else set()
    assert data.keys() - {"statusCode"} == {"code", "requestid", "message"} | denied


def test_the_sdk_refuses_wrong_credentials_as_dingtalk_does(sandbox: Sandbox) -> None:
    with pytest.raises(TeaException) as raised:
        internal_token(made(TokenClient, sandbox), secret="wrong")
    assert raised.value.code == "invalidClientIdOrSecret"


def test_the_sdk_reads_a_meeting_and_the_running_ones(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference("周会")
    info = call(sandbox, "query_conference_info", meeting).body.conf_info
    assert (info.title, info.status, info.conference_id) == ("周会", 2, meeting)
    batch = call(sandbox, "query_conference_info_batch", conference_id_list=[meeting])
    assert [found.title for found in batch.body.infos] == ["周会"]
    page = call(sandbox, "query_org_conference_list", max_results=1).body
    assert (page.total_count, page.has_more, page.next_token) == (1, False, None)
    assert page.on_going_conf_list[0].room_code == info.room_code


def test_the_sdk_creates_a_meeting_lists_its_members_and_closes_it(sandbox: Sandbox) -> None:
    created = call(sandbox, "create_video_conference", user_id="chris", conf_title="Exam").body
    meeting = sandbox.conference(created.conference_id)
    assert (created.room_code, created.host_password) == (meeting.room_code, meeting.host_password)
    for user in ("chris", "ann"):
        sandbox.join(created.conference_id, user)
    for user in ("ann", "nobody"):
        sandbox.leave(created.conference_id, user)

    page = call(sandbox, "query_conference_members", created.conference_id, max_results=1).body
    assert (page.total_count, page.next_token) == (2, "1")
    (host,) = page.member_models
    assert (host.union_id, host.host, host.attend_status, host.leave_time) == ("chris", True, 3, None)
    _, left = call(
        sandbox, "query_conference_members", created.conference_id, max_results=9
    ).body.member_models
    assert (left.union_id, left.host, left.attend_status) == ("ann", False, 6)
    assert left.leave_time - left.join_time == left.duration

    closed = call(sandbox, "close_video_conference", created.conference_id, union_id="chris")
    assert closed.body.code == 200
    assert meeting.status == "ended"
    assert meeting.left.keys() == {"chris", "ann"}
    with pytest.raises(TeaException, match="resourceClose"):
        call(sandbox, "close_video_conference", created.conference_id, union_id="chris")


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
WITH_END = {"query_conference_info", "query_conference_info_by_room_code", "query_schedule_conference_info"}
"""The calls that also show when a meeting ended."""


@pytest.mark.parametrize(("name", "method", "path"), sdk_calls(), ids=lambda value: value)
def test_each_response_has_exactly_the_fields_the_sdk_knows(
    sandbox: Sandbox, name: str, method: str, path: str
) -> None:
    for identity in ("m", "other"):
        sandbox.create_conference(
            conference_id=identity, room_code="1", schedule_conference_id="s", creator_id="chris"
        )
        sandbox.join(identity, "ann")
    if name in WITH_END:
        sandbox.end("m")
    path = path.replace("roomCodes/{}", "roomCodes/1")
    path = path.replace("Conferences/scheduleConferences/{}", "Conferences/scheduleConferences/s")
    response = requests.request(
        method,
        sandbox.url + path.replace("{}", "m"),
        params={"unionId": "chris", "maxResults": 1} if method != "POST" else None,
        json=BODIES.get(name, {}),
        headers={TOKEN_HEADER: sandbox.issue_token()},
        timeout=60,
    )
    assert response.status_code == 200
    assert sandbox.calls[-1].name != "unknown"
    check(getattr(conference_models, camel(name) + "ResponseBody"), response.json())


def test_there_are_52_conference_calls() -> None:
    assert len(sdk_calls()) == 52

"""The sandbox and DingTalk's own SDK understand each other.

The SDK is the witness that the sandbox speaks as DingTalk does: it was written by neither of the two sides
that are tested here.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
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

SENT = [row for row in ERRORS.values() if row.sent_by_dingtalk]
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

"""Access tokens: who gets one, what it is good for, and the limits on the calls of an app."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import CONFERENCES, OPEN, STREAM, TOKEN_HEADER, Caller, Clock, code

INTERNAL = "/v1.0/oauth2/accessToken"
CORP = "/v1.0/oauth2/corpAccessToken"
UNIFIED = f"/v1.0/oauth2/{Sandbox.corp_id}/token"
OTHER_CORP = "/v1.0/oauth2/dingother/token"

APP = {"appKey": Sandbox.client_id, "appSecret": Sandbox.client_secret}
SUITE = {
    "suiteKey": Sandbox.suite_key,
    "suiteSecret": Sandbox.suite_secret,
    "authCorpId": Sandbox.corp_id,
    "suiteTicket": Sandbox.suite_ticket,
}
CLIENT = {
    "client_id": Sandbox.client_id,
    "client_secret": Sandbox.client_secret,
    "grant_type": "client_credentials",
}
SUITE_CLIENT = CLIENT | {"client_id": Sandbox.suite_key, "client_secret": Sandbox.suite_secret}
QUOTA = (403, "Forbidden.AccessDenied.ApiCountLimitForOrg")
RATE = (403, "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi")
INVALID = (400, "InvalidAuthentication")


@pytest.mark.parametrize(
    ("path", "body", "refusal"),
    [
        (INTERNAL, APP | {"appSecret": "wrong"}, (400, "invalidClientIdOrSecret")),
        (INTERNAL, APP | {"appKey": "wrong"}, (400, "invalidClientIdOrSecret")),
        (INTERNAL, {"appKey": SUITE["suiteKey"], "appSecret": SUITE["suiteSecret"]}, (400, "invalidClientIdOrSecret")),
        (INTERNAL, {"appKey": Sandbox.client_id}, (400, "MissingappSecret")),
        (INTERNAL, APP | {"appKey": 1}, (400, "MissingappKey")),
        (INTERNAL, None, (400, "invalidParameter")),
        (CORP, SUITE | {"suiteKey": APP["appKey"]}, (400, "invalidSuiteKey")),
        (CORP, SUITE | {"suiteKey": APP["appKey"], "suiteSecret": APP["appSecret"]}, (400, "invalidSuiteKey")),
        (CORP, SUITE | {"suiteSecret": "wrong"}, (400, "invalidSuiteKey")),
        (CORP, SUITE | {"suiteTicket": "old"}, (400, "invalidSuiteTicket")),
        (CORP, SUITE | {"authCorpId": "other"}, (400, "invalidAuthInfo")),
        (CORP, SUITE | {"suiteTicket": ""}, (400, "MissingsuiteTicket")),
        (UNIFIED, CLIENT | {"client_secret": "wrong"}, (400, "invalid.client")),
        (UNIFIED, CLIENT | {"grant_type": "password"}, (400, "unsupported.grant.type")),
        (OTHER_CORP, CLIENT, (401, "unauthorized.client")),
        (OTHER_CORP, CLIENT | {"client_id": "forged"}, (500, "unknownError")),
        (OPEN, STREAM | {"clientSecret": "wrong"}, (401, "authFailed")),
        (OPEN, STREAM | {"clientId": "nobody"}, (401, "authFailed")),
        (OPEN, STREAM | {"clientId": None}, (400, "MissingclientId")),
        (OPEN, STREAM | {"clientSecret": None}, (400, "MissingclientSecret")),
        (OPEN, STREAM | {"subscriptions": None}, (400, "Missingsubscriptions")),
    ],
)  # fmt: skip
def test_wrong_credentials_get_the_documented_error(
    caller: Caller, path: str, body: Any, refusal: Any
) -> None:
    assert code(caller.call("POST", path, body)) == refusal


def test_an_internal_app_keeps_its_token_and_a_third_party_app_gets_a_new_one(
    clock: Clock, caller: Caller
) -> None:
    token = caller.headers[TOKEN_HEADER]
    clock.now += 7199.0
    assert caller.call("POST", INTERNAL, APP).json() == {"accessToken": token, "expireIn": 7200}
    assert len({caller.call("POST", CORP, SUITE).json()["accessToken"] for _ in range(2)}) == 2
    clock.now += 7199.0
    assert caller.lock("sandbox-open").status_code == 200
    clock.now += 1.0
    assert code(caller.lock("sandbox-open")) == INVALID


def test_an_expired_revoked_unknown_or_missing_token_is_refused(sandbox: Sandbox, caller: Caller) -> None:
    for end in (sandbox.expire_tokens, sandbox.revoke_tokens):
        end()
        assert code(caller.lock("sandbox-open")) == INVALID
        caller.headers[TOKEN_HEADER] = sandbox.issue_token()
        assert caller.lock("sandbox-open").status_code == 200
    caller.headers[TOKEN_HEADER] = Sandbox().issue_token()  # nobody can work it out from the credentials
    assert code(caller.lock("sandbox-open")) == INVALID
    del caller.headers[TOKEN_HEADER]
    assert code(caller.lock("sandbox-open")) == (400, "AuthenticationFailed.MissingParameter")


def test_an_app_without_permission_may_make_no_conference_call(sandbox: Sandbox, caller: Caller) -> None:
    fields = sandbox.connection("unpermitted")
    app = {"appKey": fields["login"], "appSecret": fields["password"]}
    caller.headers[TOKEN_HEADER] = caller.call("POST", INTERNAL, app).json()["accessToken"]
    read = caller.call("GET", "/v1.0/conference/orgConferences")
    for response, scope in ((read, "Read"), (caller.lock("sandbox-open"), "Write")):
        assert code(response) == (403, "Forbidden.AccessDenied.AccessTokenPermissionDenied")
        detail = {"requiredScopes": [f"VideoConference.Conference.{scope}"]}
        assert response.json()["accessdenieddetail"] == detail


def test_once_the_quota_is_used_up_every_call_is_refused() -> None:
    with Sandbox(quota=2) as sandbox, Caller(sandbox) as caller:
        assert [caller.lock("sandbox-open").status_code for _ in range(2)] == [200, 200]
        assert code(caller.lock("sandbox-open", "unlock")) == QUOTA
        assert sandbox.conference("sandbox-open").locked
        assert code(caller.call("POST", INTERNAL, {"appKey": "x"})) == QUOTA
        assert code(caller.call("GET", "/v1.0/no/such/call"))[0] == 404
        assert caller.control("GET", "/calls").status_code == 200


def test_more_calls_a_second_than_allowed_are_refused_until_the_named_moment(clock: Clock) -> None:
    with Sandbox(calls_per_second=3, clock=clock) as sandbox, Caller(sandbox) as caller:
        before = datetime.now(timezone.utc)
        responses = [caller.lock("sandbox-open", action) for action in ("lock", "unlock", "lock", "lock")]
        assert [response.status_code for response in responses] == [200, 200, 200, 403]
        assert code(responses[3]) == RATE
        found = re.search(
            "限制将在 ([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}) 结束", responses[3].json()["message"]
        )
        assert found
        end = datetime.fromisoformat(f"{found[1]}+08:00")
        assert timedelta(seconds=0.9) < end - before < timedelta(seconds=60)
        assert caller.call("GET", f"{CONFERENCES}/sandbox-open").status_code == 200, "another API"
        clock.now += 0.9
        assert code(caller.lock("sandbox-open")) == RATE
        clock.now += 0.1
        assert caller.lock("sandbox-open").status_code == 200


def test_each_app_has_its_own_rate_limit_for_each_api(clock: Clock) -> None:
    with Sandbox(calls_per_second=1, clock=clock) as sandbox, Caller(sandbox) as caller:
        assert caller.call("POST", UNIFIED, SUITE_CLIENT).status_code == 200
        assert caller.call("POST", UNIFIED, CLIENT).status_code == 200
        assert code(caller.call("POST", UNIFIED, CLIENT)) == RATE
        assert caller.call("POST", INTERNAL, APP).status_code == 200

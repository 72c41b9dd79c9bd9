"""Access tokens: who gets one, and what it is good for."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import Caller, Clock, code

INTERNAL = "/v1.0/oauth2/accessToken"
CORP = "/v1.0/oauth2/corpAccessToken"
UNIFIED = f"/v1.0/oauth2/{Sandbox.corp_id}/token"

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


@pytest.mark.parametrize(
    ("path", "body", "token", "lifetime"),
    [
        (INTERNAL, APP, "accessToken", "expireIn"),
        (CORP, SUITE, "accessToken", "expireIn"),
        (UNIFIED, CLIENT, "access_token", "expires_in"),
        (UNIFIED, SUITE_CLIENT, "access_token", "expires_in"),
    ],
)
def test_each_kind_of_app_gets_a_token_that_works(
    caller: Caller, path: str, body: dict[str, str], token: str, lifetime: str
) -> None:
    answer = caller.call("POST", path, body)
    assert answer.status_code == 200
    assert answer.json()[lifetime] == 7200
    caller.authorise(answer.json()[token])
    assert caller.lock("sandbox-open").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "refusal"),
    [
        (INTERNAL, APP | {"appSecret": "wrong"}, (400, "invalidClientIdOrSecret")),
        (INTERNAL, APP | {"appKey": "wrong"}, (400, "invalidClientIdOrSecret")),
        (
            INTERNAL,
            {"appKey": Sandbox.suite_key, "appSecret": Sandbox.suite_secret},
            (400, "invalidClientIdOrSecret"),
        ),
        (INTERNAL, {"appKey": Sandbox.client_id}, (400, "MissingappSecret")),
        (INTERNAL, APP | {"appKey": 1}, (400, "MissingappKey")),
        (INTERNAL, None, (400, "invalidParameter")),
        (CORP, SUITE | {"suiteKey": Sandbox.client_id}, (400, "invalidSuiteKey")),
        (
            CORP,
            SUITE | {"suiteKey": Sandbox.client_id, "suiteSecret": Sandbox.client_secret},
            (400, "invalidSuiteKey"),
        ),
        (CORP, SUITE | {"suiteSecret": "wrong"}, (400, "invalidSuiteKey")),
        (CORP, SUITE | {"suiteTicket": "old"}, (400, "invalidSuiteTicket")),
        (CORP, SUITE | {"authCorpId": "other"}, (400, "invalidAuthInfo")),
        (CORP, SUITE | {"suiteTicket": ""}, (400, "MissingsuiteTicket")),
        (UNIFIED, CLIENT | {"client_secret": "wrong"}, (400, "invalid.client")),
        (UNIFIED, CLIENT | {"grant_type": "password"}, (400, "unsupported.grant.type")),
        ("/v1.0/oauth2/dingother/token", CLIENT, (401, "unauthorized.client")),
        ("/v1.0/oauth2/dingother/token", CLIENT | {"client_id": "forged"}, (500, "unknownError")),
    ],
)
def test_wrong_credentials_get_the_documented_error(
    caller: Caller, path: str, body: Any, refusal: tuple[int, str]
) -> None:
    assert code(caller.call("POST", path, body)) == refusal


def test_an_internal_app_gets_its_valid_token_again_and_a_third_party_app_a_new_one(caller: Caller) -> None:
    def ask(path: str, body: dict[str, str]) -> str:
        return str(caller.call("POST", path, body).json()["accessToken"])

    assert ask(INTERNAL, APP) == ask(INTERNAL, APP)
    assert ask(CORP, SUITE) != ask(CORP, SUITE)


def test_asking_again_renews_the_lifetime_of_a_token(sandbox: Sandbox, clock: Clock, caller: Caller) -> None:
    first = sandbox.issue_token()
    clock.now += 7199.0
    assert caller.call("POST", INTERNAL, APP).json() == {"accessToken": first, "expireIn": 7200}
    clock.now += 7199.0
    assert caller.lock("sandbox-open").status_code == 200


def test_a_token_dies_with_its_lifetime(clock: Clock, caller: Caller) -> None:
    clock.now += 7200.0
    assert code(caller.lock("sandbox-open")) == (400, "InvalidAuthentication")


def test_expired_and_revoked_tokens_are_refused_and_a_fresh_one_works(
    sandbox: Sandbox, caller: Caller
) -> None:
    for end in (sandbox.expire_tokens, sandbox.revoke_tokens):
        end()
        assert code(caller.lock("sandbox-open")) == (400, "InvalidAuthentication")
        caller.authorise(sandbox.issue_token())
        assert caller.lock("sandbox-open").status_code == 200


def test_a_missing_token_is_a_missing_parameter_and_an_unknown_one_invalid(caller: Caller) -> None:
    caller.authorise("unknown")
    assert code(caller.lock("sandbox-open")) == (400, "InvalidAuthentication")
    del caller.headers["x-acs-dingtalk-access-token"]
    assert code(caller.lock("sandbox-open")) == (400, "AuthenticationFailed.MissingParameter")


def test_an_app_without_the_permission_point_is_forbidden_every_conference_call(
    sandbox: Sandbox, caller: Caller
) -> None:
    fields = sandbox.connection("unpermitted")
    answer = caller.call("POST", INTERNAL, {"appKey": fields["login"], "appSecret": fields["password"]})
    caller.authorise(answer.json()["accessToken"])
    denied = (403, "Forbidden.AccessDenied.AccessTokenPermissionDenied")
    assert code(caller.lock("sandbox-open")) == denied
    read = caller.call("GET", "/v1.0/conference/orgConferences")
    assert code(read) == denied
    assert read.json()["accessdenieddetail"] == {"requiredScopes": ["VideoConference.Conference.Read"]}
    written = caller.lock("sandbox-open").json()
    assert written["accessdenieddetail"] == {"requiredScopes": ["VideoConference.Conference.Write"]}


def test_a_token_tells_nothing_of_the_credentials() -> None:
    tokens = set()
    for _ in range(2):
        with Sandbox() as sandbox:
            tokens.add(sandbox.issue_token())
    assert len(tokens) == 2
    assert all(len(token) == 32 for token in tokens)

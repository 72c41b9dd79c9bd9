"""Access tokens: what fetches one, what its response holds, when it is renewed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.errors import ResponseError
from airflow_provider_dingconf.dingtalk.tokens import App, Token, read_token

SECRET, TICKET = "hidden-secret", "hidden-ticket"
APPS: dict[str, tuple[App, str, dict[str, str]]] = {
    "internal app": (
        App("id", SECRET),
        "/v1.0/oauth2/accessToken",
        {"appKey": "id", "appSecret": SECRET},
    ),
    "app, by the unified token call": (
        App("id", SECRET, "dingcorp"),
        "/v1.0/oauth2/dingcorp/token",
        {"client_id": "id", "client_secret": SECRET, "grant_type": "client_credentials"},
    ),
    "third-party app": (
        App("id", SECRET, "dingcorp", TICKET),
        "/v1.0/oauth2/corpAccessToken",
        {"suiteKey": "id", "suiteSecret": SECRET, "authCorpId": "dingcorp", "suiteTicket": TICKET},
    ),
}


@pytest.mark.parametrize("kind", APPS)
def test_each_kind_of_app_fetches_its_token_with_its_own_call_and_shows_no_secret(kind: str) -> None:
    app, path, body = APPS[kind]
    call = app.token_call()
    assert app.kind == kind
    request = call.request()
    assert (request.method, request.target, json.loads(request.content or b"")) == ("POST", path, body)
    assert call.endpoint.with_credentials
    assert "x-acs-dingtalk-access-token" not in request.headers
    assert "hidden" not in f"{app!r} {call!r} {request!r}"
    assert sorted(app.secrets) == sorted(value for value in body.values() if value.startswith("hidden"))


def test_a_static_token_is_never_renewed() -> None:
    token = Token("hidden")
    assert token.static
    assert "hidden" not in repr(token)


@pytest.mark.parametrize("names", [("accessToken", "expireIn"), ("access_token", "expires_in")])
def test_either_form_of_the_response_gives_a_token(names: tuple[str, str]) -> None:
    assert read_token({names[0]: "abc", names[1]: 7200}, 5.0) == Token("abc", 5.0, 7200.0)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"accessToken": "abc"},
        {"expireIn": 7200},
        *(
            {"accessToken": value, "expireIn": 7200}
            for value in ("", None, 1, ["abc"], "a b", "a\r\nX: y", "会")
        ),
        *(
            {"accessToken": "abc", "expireIn": value}
            for value in (None, "7200", True, 0, -1, float("inf"), float("nan"), 1e300, 10**400, [7200])
        ),
    ],
)
def test_a_response_without_a_usable_token_is_an_error(content: dict[str, Any]) -> None:
    with pytest.raises(ResponseError) as caught:
        read_token(content, 0.0)
    assert caught.value.code == "unreadableAnswer"

"""What a call puts on the wire, and what is refused before anything is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.calls import (
    CHINA_HOST,
    MAX_CONFERENCE_ID_LENGTH,
    TOKEN_HEADER,
    any_call,
    documentation_url,
    lock_call,
)
from airflow_provider_dingconf.dingtalk.errors import InvalidConferenceIdError, InvalidInputError


@pytest.mark.parametrize("action", ["lock", "unlock"])
def test_a_lock_is_the_documented_request_and_nothing_else(action: str) -> None:
    request = lock_call("644272f14ba3310xxxxxxxxx", action).request("the-token")
    assert (request.method, request.target) == (
        "POST",
        "/v1.0/conference/videoConferences/644272f14ba3310xxxxxxxxx/lock",
    )
    assert request.content == b'{"action":"%s"}' % action.encode()
    headers = dict(request.headers)
    assert headers.pop("User-Agent").startswith("airflow-provider-dingconf/")
    assert headers == {
        "Accept": "application/json",
        "Content-Type": "application/json; charset=utf-8",
        TOKEN_HEADER: "the-token",
    }


def test_neither_a_token_nor_a_body_shows_in_a_repr() -> None:
    call = any_call("POST", "/v1.0/x", json={"password": "hidden-body"})
    assert "hidden" not in repr(call) + repr(call.request("hidden-token"))


REFUSED = {
    "": "it is empty",
    " ": "it is blank",
    "\t\n": "it is blank",
    "a b": "' '",
    "a/b": "'/'",
    "a/../b": "'/'",
    "a\\b": r"'\\\\'",
    ".": "'.' names another path",
    "..": "'..' names another path",
    "a?b": r"'\?'",
    "a#b": "'#'",
    "a%2Fb": "'%'",
    "a\nb": r"'\\n'",
    "a\x00b": r"'\\x00'",
    "a\x7fb": r"'\\x7f'",
    "会议": r"'\\u4f1a'",
    "a\u202eb": r"'\\u202e'",
    "a" * 10_000: "10000 characters",
}


@pytest.mark.parametrize(("conference_id", "problem"), REFUSED.items(), ids=range(len(REFUSED)))
def test_a_conference_id_that_is_no_path_segment_is_refused(conference_id: str, problem: str) -> None:
    with pytest.raises(InvalidConferenceIdError, match=rf"^conference_id: .*{problem}") as caught:
        lock_call(conference_id, "lock")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("conference_id", [None, 644272, ["a"], {"a": 1}, b"a", True])
def test_a_conference_id_that_is_no_string_is_refused_with_its_type(conference_id: Any) -> None:
    kind = type(conference_id).__name__
    with pytest.raises(InvalidConferenceIdError, match=rf"^conference_id: expected a string, .* {kind}"):
        lock_call(conference_id, "lock")


@pytest.mark.parametrize(
    "conference_id", ["a", "...", "a..b", "-._~!$&'()*+,;=:@", "9" * MAX_CONFERENCE_ID_LENGTH]
)
def test_a_conference_id_that_is_a_path_segment_goes_out_as_it_is(conference_id: str) -> None:
    target = lock_call(conference_id, "lock").request("t").target
    assert target == f"/v1.0/conference/videoConferences/{conference_id}/lock"


def test_any_call_takes_a_method_a_path_parameters_and_a_body() -> None:
    request = any_call(
        "delete", "/v1.0/x/y", params={"unionId": "a b&c", "n": 1}, json={"name": "会议"}
    ).request("t")
    assert (request.method, request.target) == ("DELETE", "/v1.0/x/y?unionId=a+b%26c&n=1")
    assert request.content is not None
    assert json.loads(request.content) == {"name": "会议"}
    assert "会议".encode() in request.content


def test_a_call_without_a_body_has_no_content_type() -> None:
    request = any_call("GET", "/v1.0/x").request("t")
    assert request.content is None
    assert "Content-Type" not in request.headers


@pytest.mark.parametrize("method", ["", "TRACE", "GET\r\nX: y", None, 1])
def test_any_call_refuses_an_unknown_method(method: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^method: .*DELETE, GET, PATCH, POST, PUT"):
        any_call(method, "/v1.0/x")


@pytest.mark.parametrize(
    "path",
    ["", "v1.0/x", "https://other.example/x", "//other.example/x", "/v1.0/../x", "/a/./b", "/a//b", "/a/",
     "/a?b=c", "/a#b", "/a b", "/a\r\nb", "/%2e%2e/x", "/a\\b", "@other.example/x", None, ["/a"]],
)  # fmt: skip
def test_any_call_refuses_what_is_no_plain_path(path: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^path: .* is not a plain absolute path"):
        any_call("GET", path)


def nested(depth: int) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for _ in range(depth):
        body = {"x": body}
    return body


@pytest.mark.parametrize(
    "what",
    [
        {"params": "a=1"},
        {"params": [("a", 1)]},
        {"params": {"a": [1]}},
        {"params": {"a": "\ud800"}},
        {"json": nested(100_000)},
        {"json": {"a": {1}}},
        {"json": {"a": float("nan")}},
        {"json": {"a": "\ud800"}},
    ],
    ids=lambda what: next(iter(what)),
)
def test_any_call_refuses_what_cannot_be_sent(what: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^params or json: they cannot be sent: "):
        any_call("POST", "/v1.0/x", **what)


def test_a_body_is_sent_as_it_was_when_it_was_found_to_be_sound() -> None:
    body: dict[str, Any] = {"n": 1}
    call = any_call("POST", "/v1.0/x", json=body)
    body["n"] = {1}
    assert call.request("t").content == b'{"n":1}'


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("https://api.dingtalk.io", "https://help.dingtalk.io/open/development/api-lockconference"),
        ("http://127.0.0.1:8790", "https://help.dingtalk.io/open/development/api-lockconference"),
        (CHINA_HOST, "https://open.dingtalk.com/document/development/api-lockconference"),
        (CHINA_HOST + "/", "https://open.dingtalk.com/document/development/api-lockconference"),
    ],
)
def test_the_documentation_is_that_of_the_hosts_region(host: str, site: str) -> None:
    assert documentation_url("api-lockconference", host) == site

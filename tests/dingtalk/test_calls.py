"""What a call puts on the wire, and what is refused before anything is."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

import pytest

from airflow_provider_dingconf.dingtalk.calls import (
    TOKEN_HEADER,
    any_call,
    documentation_url,
    lock_call,
)
from airflow_provider_dingconf.dingtalk.conferences import Reference
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError


@pytest.mark.parametrize("action", ["lock", "unlock"])
def test_a_lock_is_the_documented_request_and_nothing_else(action: str) -> None:
    request = lock_call(Reference("conference_id", "644272f14ba3310xxxxxxxxx"), action).request("the-token")
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


@pytest.mark.parametrize("wrong", ["a/../b", "a", None])
def test_a_lock_takes_no_unchecked_id(wrong: Any) -> None:
    with pytest.raises(AttributeError):
        lock_call(wrong, "lock")


@pytest.mark.parametrize("name", ["room_code", "schedule_conference_id"])
def test_a_lock_takes_a_conference_id_only(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{name}: find the meeting first"):
        lock_call(Reference(name, "1"), "lock")


def test_neither_a_token_nor_a_body_shows_in_a_repr() -> None:
    call = any_call("POST", "/v1.0/x", json={"password": "hidden-body"})
    assert "hidden" not in repr(call) + repr(call.request("hidden-token"))


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
     "/a?b=c", "/a#b", "/a b", "/a\r\nb", "/a\\b", "@other.example/x", "/a%", "/a%2", "/a%zz", "/a{b", "/a}b",
     "/%2e%2e/x", "/x/%2E", "/.%2e/x", "/a%2F..%2Fb", "/a%5c..%5cb", "/会议", None, ["/a"]],
)  # fmt: skip
def test_any_call_refuses_what_is_no_plain_path(path: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^path: .* is not a plain absolute path"):
        any_call("GET", path)


def test_an_encoded_path_is_sent_as_it_is() -> None:
    path = "/v1.0/im/chats/cid%2F%2FVc7N%3D%3D"
    assert any_call("GET", path).request("t").target == path


@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("cid//Vc7N==", "cid%2F%2FVc7N%3D%3D"),
        ("a%2Fb", "a%252Fb"),
        (":/?#[]@!$&'()*+,;= %", "%3A%2F%3F%23%5B%5D%40%21%24%26%27%28%29%2A%2B%2C%3B%3D%20%25"),
        ("会议", "%E4%BC%9A%E8%AE%AE"),
        ("a\r\nb", "a%0D%0Ab"),
        ("a..b", "a..b"),
        ("{id}", "%7Bid%7D"),
        (42, "42"),
    ],
)
def test_a_path_parameter_is_one_percent_encoded_segment(value: Any, segment: str) -> None:
    call = any_call("GET", "/v1.0/im/chats/{id}/users/{user}", path_params={"id": value, "user": "u"})
    assert call.request("t").target == f"/v1.0/im/chats/{segment}/users/u"
    assert unquote(segment) == str(value)


@pytest.mark.parametrize(
    ("path_params", "says"),
    [
        (None, "path_params: 'id' is missing, for which the path has a placeholder"),
        ({}, "path_params: 'id' is missing"),
        ({"id": "1", "ID": "2"}, "path_params: the path has no placeholder for 'ID'"),
        ({"id": "1", 5: "2"}, "path_params: the path has no placeholder for 5"),
        ({"id": ""}, "path_params: 'id': it is empty"),
        ({"id": "None"}, "path_params: 'id': it is 'None', as a template or XCom without a value renders"),
        ({"id": None}, "path_params: 'id': expected a string, got None"),
        ({"id": 1.5}, "path_params: 'id': expected a string, got 1.5 of type float"),
        ({"id": True}, "path_params: 'id': expected a string, got True of type bool"),
        ({"id": ["a"]}, "path_params: 'id': expected a string, got ['a'] of type list"),
        ({"id": "."}, "path_params: 'id': '.' would change the path"),
        ({"id": ".."}, "path_params: 'id': '..' would change the path"),
        ({"id": "a/../b"}, "path_params: 'id': 'a/../b' would change the path"),
        ({"id": "\ud800"}, "path_params: 'id': it cannot be sent"),
        ("id", "path_params: expected a dict of values by name, got 'id'"),
        ([("id", "1")], "path_params: expected a dict of values by name"),
    ],
)
def test_an_invalid_path_parameter_is_refused_by_its_name(path_params: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{re.escape(says)}"):
        any_call("GET", "/v1.0/im/chats/{id}", path_params=path_params)


def test_a_body_may_be_a_list_and_the_response_anything() -> None:
    call = any_call("POST", "/v1.0/x", json=[{"a": 1}])
    assert call.request("t").content == b'[{"a":1}]'
    assert call.endpoint.any_body


@pytest.mark.parametrize("body", ["text", 5, True, {1}, ("a",)])
def test_a_body_of_another_type_is_refused(body: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^json: .* cannot be sent; give a dict or a list"):
        any_call("POST", "/v1.0/x", json=body)


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
    with pytest.raises(InvalidInputError, match=r"^query parameters or body: they cannot be sent: "):
        any_call("POST", "/v1.0/x", **what)


def test_a_body_is_sent_as_it_was_when_it_was_checked() -> None:
    body: dict[str, Any] = {"n": 1}
    call = any_call("POST", "/v1.0/x", json=body)
    body["n"] = {1}
    assert call.request("t").content == b'{"n":1}'


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("https://api.dingtalk.io", "https://help.dingtalk.io/open/development/api-lockconference"),
        ("http://127.0.0.1:8790", "https://help.dingtalk.io/open/development/api-lockconference"),
        ("https://api.dingtalk.com", "https://open.dingtalk.com/document/development/api-lockconference"),
        ("https://api.dingtalk.com/", "https://open.dingtalk.com/document/development/api-lockconference"),
    ],
)
def test_the_documentation_is_that_of_the_hosts_region(host: str, site: str) -> None:
    assert documentation_url("api-lockconference", host) == site

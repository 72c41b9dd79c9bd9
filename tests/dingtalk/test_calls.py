"""What a call sends, and what is refused before anything is sent."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any
from urllib.parse import unquote

import pytest

from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER, any_call, documentation_url, lock_call
from airflow_provider_dingconf.dingtalk.conferences import Reference, check_reference, list_call
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError


@pytest.mark.parametrize(
    ("call", "method", "target", "content"),
    [
        (
            lock_call(Reference("conference_id", "644272f14ba3310a"), "lock"),
            "POST", "/v1.0/conference/videoConferences/644272f14ba3310a/lock", '{"action":"lock"}',
        ),
        (
            lock_call(Reference("conference_id", "644272f14ba3310a"), "unlock"),
            "POST", "/v1.0/conference/videoConferences/644272f14ba3310a/lock", '{"action":"unlock"}',
        ),
        (
            any_call("delete", "/v1.0/x/y", params={"unionId": "a b&c", "n": 1, "b": True}, json={"a": "会议"}),
            "DELETE", "/v1.0/x/y?unionId=a+b%26c&n=1&b=true", '{"a":"会议"}',
        ),
        (any_call("GET", "/im/chats/cid%2F%2FV%3D%3D"), "GET", "/im/chats/cid%2F%2FV%3D%3D", None),
        (any_call("POST", "/v1.0/x", json=[{"a": 1}]), "POST", "/v1.0/x", '[{"a":1}]'),
    ],
    ids=["a lock", "an unlock", "any call", "an encoded path and no body", "a list as the body"],
)  # fmt: skip
def test_a_request_holds_what_dingtalk_documents_and_nothing_else(
    call: Any, method: str, target: str, content: str | None
) -> None:
    request = call.request("the-token")
    sent = None if content is None else content.encode()
    assert (request.method, request.target, request.content) == (method, target, sent)
    headers = dict(request.headers)
    assert headers.pop("User-Agent").startswith("airflow-provider-dingconf/")
    json = {"Content-Type": "application/json; charset=utf-8"} if content else {}
    assert headers == {"Accept": "application/json", TOKEN_HEADER: "the-token", **json}


def test_neither_a_token_nor_a_body_shows_in_a_repr() -> None:
    call = any_call("POST", "/v1.0/x", json={"password": "hidden-body"})
    assert "hidden" not in repr(call) + repr(call.request("hidden-token"))


def test_a_body_is_sent_as_it_was_when_it_was_checked() -> None:
    body: dict[str, Any] = {"n": 1}
    call = any_call("POST", "/v1.0/x", json=body)
    body["n"] = {1}
    assert call.request("t").content == b'{"n":1}'


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


# What is refused


@pytest.mark.parametrize("method", ["", "TRACE", "GET\r\nX: y", None, 1, pytest.param(10**5000, id="huge")])
def test_any_call_refuses_an_unknown_method(method: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^method: .*DELETE, GET, PATCH, POST, PUT"):
        any_call(method, "/v1.0/x")


@pytest.mark.parametrize(
    "path",
    ["", "v1.0/x", "https://other.example/x", "//other.example/x", "/v1.0/../x", "/a/./b", "/a//b", "/a/",
     "/a?b=c", "/a#b", "/a b", "/a\r\nb", "/a\\b", "@other.example/x", "/a%", "/a%2", "/a%zz", "/a{b", "/a}b",
     "/%2e%2e/x", "/x/%2E", "/.%2e/x", "/a%2F..%2Fb", "/a%5c..%5cb", "/会议", None, ["/a"]],
)  # fmt: skip
def test_any_call_refuses_all_but_a_plain_path(path: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^path: .* is not a plain absolute path"):
        any_call("GET", path)


@pytest.mark.parametrize(
    ("path_params", "says"),
    [
        (None, "'id' is missing, for which the path has a placeholder"),
        ({}, "'id' is missing"),
        ({"ID": "1"}, "'id' is missing"),
        ({"id": "1", "ID": "2"}, "the path has no placeholder for 'ID'"),
        ({"id": "1", 5: "2"}, "the path has no placeholder for 5"),
        ({"id": ""}, "'id': it is empty"),
        ({"id": "None"}, "'id': it is 'None', as a template or XCom without a value renders"),
        ({"id": None}, "'id': it is None, as a template or XCom without a value renders"),
        ({"id": 1.5}, "'id': expected a string, got 1.5 of type float"),
        ({"id": True}, "'id': expected a string, got True of type bool"),
        ({"id": ["a"]}, "'id': expected a string, got ['a'] of type list"),
        ({"id": "."}, "'id': '.' would change the path"),
        ({"id": ".."}, "'id': '..' would change the path"),
        ({"id": "a/../b"}, "'id': 'a/../b' would change the path"),
        ({"id": "\ud800"}, "'id': it cannot be sent"),
        ("id", "expected a dict of values by name, got 'id'"),
        ([("id", "1")], "expected a dict of values by name"),
    ],
)
def test_an_invalid_path_parameter_is_refused_by_its_name(path_params: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^path_params: {re.escape(says)}"):
        any_call("GET", "/v1.0/im/chats/{id}", path_params=path_params)


def nested(depth: int) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for _ in range(depth):
        body = {"x": body}
    return body


@pytest.mark.parametrize(
    ("what", "says"),
    [
        *(({"json": body}, r"json: .* cannot be sent; give a dict or a list")
          for body in ("text", 5, True, {1}, ("a",))),
        *((what, "query parameters or body: they cannot be sent: ")
          for what in ({"params": "a=1"}, {"params": [("a", 1)]}, {"params": {"a": [1]}},
                       {"params": {"a": "\ud800"}}, {"params": {"a": float("nan")}},
                       {"params": {None: "a"}}, {"params": {1: "a"}}, {"json": nested(100_000)}, {"json": {"a": {1}}},
                       {"json": {"a": float("nan")}}, {"json": {"a": "\ud800"}})),
    ],
    ids=lambda what: next(iter(what)) if isinstance(what, dict) else "",
)  # fmt: skip
def test_any_call_refuses_what_cannot_be_sent(what: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{says}"):
        any_call("POST", "/v1.0/x", **what)


@pytest.mark.parametrize("repeatable", ["False", "false", "", None, 0, 1])
def test_any_call_is_repeatable_or_not_and_takes_no_text_for_it(repeatable: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^repeatable: .* is not True or False"):
        any_call("POST", "/v1.0/x", repeatable=repeatable)


class Name(str, Enum):
    PATH = "/v1.0/{id}"
    ID = "id"
    ROOM = "123 456"


def test_a_member_of_an_enum_is_sent_as_its_text() -> None:
    call = any_call("GET", Name.PATH, path_params={"id": Name.ID}, params={Name.ID: Name.ROOM})
    assert (call.name, call.target) == ("GET /v1.0/id", "/v1.0/id?id=123+456")
    assert lock_call(check_reference(Name.ID), "lock").target == "/v1.0/conference/videoConferences/id/lock"
    assert "/roomCodes/123456/" in list_call(check_reference(room_code=Name.ROOM)).target
    assert type(check_reference(schedule_conference_id=Name.ID).value) is str


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("https://api.dingtalk.io", "help.dingtalk.io/open"),
        ("http://127.0.0.1:8790", "help.dingtalk.io/open"),
        ("https://api.dingtalk.com", "open.dingtalk.com/document"),
        ("https://api.dingtalk.com/", "open.dingtalk.com/document"),
    ],
)
def test_the_documentation_is_that_of_the_hosts_region(host: str, site: str) -> None:
    page = f"https://{site}/development/api-lockconference"
    assert documentation_url("api-lockconference", host) == page

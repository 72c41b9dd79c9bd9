"""The sandbox itself: records, connections, starting and stopping."""

from __future__ import annotations

import gc
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest
import requests
from waiting import wait_until

from airflow_provider_dingconf.sandbox import Fault, Sandbox

from .conftest import TOKEN_HEADER, Caller, code


def test_every_call_is_recorded_as_it_came_over_the_wire(sandbox: Sandbox) -> None:
    # Below `requests`, which would tidy up the path.
    wire = HTTPConnection("127.0.0.1", sandbox.port, timeout=60)
    wire.request("POST", "/v1.0/x/%2e%2E/../%41?q=%20", b"\x00raw", {"X-oDD": "a, b", "Authorization": "x"})
    assert wire.getresponse().status == 404
    wire.close()
    call = sandbox.calls[0]
    assert (call.name, call.method, call.path) == ("unknown", "POST", "/v1.0/x/%2e%2E/../%41?q=%20")
    assert call.body == b"\x00raw"
    assert call.headers == [
        ("Host", f"127.0.0.1:{sandbox.port}"),
        ("Accept-Encoding", "identity"),
        ("Content-Length", "4"),
        ("X-oDD", "a, b"),
        ("Authorization", "x"),
    ]
    assert (call.header("authorization"), call.header(TOKEN_HEADER)) == ("x", None)
    assert (call.status, call.code, call.conference_id) == (404, "InvalidAction.NotFound", None)


def test_calls_are_found_by_name_and_forgotten_on_demand(sandbox: Sandbox, caller: Caller) -> None:
    responses = [caller.lock("sandbox-confClosed", action) for action in ("lock", "unlock", "lock")]
    caller.control("GET", "/calls")
    calls = sandbox.calls
    assert [call.name for call in calls] == ["lock", "unlock", "lock"]
    assert (len(sandbox.calls_of("lock")), len(sandbox.calls_of("lock", "unlock"))) == (2, 3)
    assert (calls[0].conference_id, calls[0].json()) == ("sandbox-confClosed", {"action": "lock"})
    assert [call.time for call in calls] == sorted(call.time for call in calls)
    assert [response.json()["requestid"] for response in responses] == [call.request_id for call in calls]
    assert len({call.request_id for call in calls}) == 3
    sandbox.clear()
    assert (len(calls), sandbox.calls) == (3, [])


@pytest.mark.parametrize(
    ("method", "path", "old_form"),
    [
        ("GET", "/v1.0/oauth2/accessToken", False),
        ("PUT", "/v2.0/x", False),
        *[("POST", path, True) for path in ("/", "/topapi/user/get", "/v1")],
    ],
)
def test_an_unknown_path_or_method_gets_its_error(
    caller: Caller, method: str, path: str, old_form: bool
) -> None:
    response = caller.call(method, path, {})
    if old_form:
        assert (response.status_code, response.json()["errcode"]) == (200, 404)
        assert caller.sandbox.calls[-1].code == "404"
    else:
        assert code(response) == (404, "InvalidAction.NotFound")
        assert response.json().keys() == {"code", "requestid", "message"}


def test_many_threads_can_use_one_sandbox(sandbox: Sandbox) -> None:
    meetings = [sandbox.create_conference() for _ in range(40)]

    def lock(meeting: str) -> bool:
        with Caller(sandbox) as caller:
            return bool(caller.lock(meeting).json()["success"]) and not sandbox.join(meeting, "late")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lock, meetings))
    assert len(sandbox.calls_of("lock")) == 40


def test_nothing_is_left_of_a_sandbox_that_ended_and_it_can_come_back_on_its_port_without_its_faults() -> (
    None
):
    again = Sandbox(slow=30)
    with again, Caller(again) as caller:
        assert caller.lock("sandbox-open").status_code == 200
        with pytest.raises(requests.Timeout):
            caller.lock("sandbox-slow", timeout=(60, 0.2))
        again.fail(Fault(code="addressBanned", duration=300))
        assert caller.lock("sandbox-open").json()["punish"] == "deny"
        port = again.port
    assert not [thread for thread in threading.enumerate() if thread.name == "dingtalk-sandbox"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)
    with again, Caller(again) as caller:
        assert again.port == port
        assert again.conference("sandbox-open").locked
        assert caller.lock("sandbox-open").json() == {"success": True}


def test_a_sandbox_that_ends_leaves_no_connection_for_python_to_warn_of() -> None:
    gc.collect()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        with Sandbox() as sandbox:
            sandbox.fail(Fault(call="list", delay=60))
            idle, waiting = (HTTPConnection("127.0.0.1", sandbox.port) for _ in range(2))
            idle.request("GET", "/sandbox/calls")
            idle.getresponse().read()
            waiting.request("GET", "/v1.0/conference/orgConferences")
            wait_until(lambda: sandbox.calls)
            began = time.monotonic()
        assert time.monotonic() - began < 30, "it waited for the response"
        gc.collect()
    idle.close()
    waiting.close()
    assert [str(one.message) for one in warned] == []


def test_it_listens_on_a_free_port_of_the_loopback_address_only(sandbox: Sandbox) -> None:
    assert sandbox.url == f"http://127.0.0.1:{sandbox.port}"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", sandbox.port), timeout=60)
    with pytest.raises(OSError, match="in use"), Sandbox(sandbox.port):
        pass


CONNECTIONS = {
    "internal": {},
    "third_party": {"corp_id": Sandbox.corp_id, "suite_ticket": Sandbox.suite_ticket},
    "unified": {"corp_id": Sandbox.corp_id},
    "unpermitted": {},
}


@pytest.mark.parametrize("kind", [*CONNECTIONS, "static_token"])
@pytest.mark.parametrize("extra", [{}, {"timeout": 3}], ids=str)
def test_airflow_reads_the_same_from_the_uri_and_the_json(sandbox: Sandbox, kind: Any, extra: Any) -> None:
    connection = pytest.importorskip("airflow.models.connection").Connection
    fields = sandbox.connection(kind, extra=extra)
    assert kind == "static_token" or fields["extra"] == CONNECTIONS[kind] | extra
    by_uri = connection(conn_id="x", uri=sandbox.connection_uri(kind, **fields))
    by_json = connection.from_json(sandbox.connection_json(kind, **fields), conn_id="x")
    for read in (by_uri, by_json):
        assert (read.conn_type, read.host, read.port) == ("dingtalk", sandbox.url, None)
        assert (read.login or "", read.password or "") == (fields["login"], fields["password"])
        assert read.extra_dejson == fields["extra"]
    assert by_json.get_uri() == sandbox.connection_uri(kind, **fields)


def test_a_connection_with_a_static_token_needs_no_login(sandbox: Sandbox, caller: Caller) -> None:
    fields = sandbox.connection("static_token")
    assert (fields["login"], fields["password"]) == ("", "")
    caller.headers[TOKEN_HEADER] = fields["extra"]["access_token"]
    assert caller.lock("sandbox-open").status_code == 200
    assert "@" not in sandbox.connection_uri("static_token")
    assert sandbox.calls_of("token") == []


def test_single_fields_of_a_connection_can_be_other_ones(sandbox: Sandbox) -> None:
    fields = sandbox.connection("unified", password="wrong", extra={"timeout": 3})
    assert fields["password"] == "wrong"
    assert fields["extra"] == {"corp_id": sandbox.corp_id, "timeout": 3}
    other = {"host": "127.0.0.1", "port": 1, "schema": "http", "password": "p@/s", "extra": {"timeout": 3}}
    expected = f"dingtalk://{sandbox.client_id}:p%40%2Fs@127.0.0.1:1/http?__extra__=%7B%22timeout%22%3A+3%7D"
    assert sandbox.connection_uri(**other) == expected

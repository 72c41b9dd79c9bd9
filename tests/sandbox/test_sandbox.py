"""The sandbox itself: records, connections, starting and stopping."""

from __future__ import annotations

import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_dingconf.sandbox import Fault, Sandbox

from .conftest import Caller, code

if TYPE_CHECKING:
    from pathlib import Path


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
    assert call.header("authorization") == "x"
    assert call.header("x-acs-dingtalk-access-token") is None
    assert (call.status, call.code, call.conference_id) == (404, "InvalidAction.NotFound", None)


def test_calls_are_found_by_name_and_forgotten_on_demand(sandbox: Sandbox, caller: Caller) -> None:
    for action in ("lock", "unlock", "lock"):
        caller.lock("sandbox-open", action)
    caller.control("GET", "/calls")
    assert [call.name for call in sandbox.calls] == ["lock", "unlock", "lock"]
    assert len(sandbox.calls_of("lock")) == 2
    assert len(sandbox.calls_of("lock", "unlock")) == 3
    assert sandbox.calls[0].conference_id == "sandbox-open"
    assert sandbox.calls[0].json() == {"action": "lock"}
    assert [call.time for call in sandbox.calls] == sorted(call.time for call in sandbox.calls)
    sandbox.clear()
    assert sandbox.calls == []


def test_every_error_has_a_request_id_of_its_own(sandbox: Sandbox, caller: Caller) -> None:
    sent = [caller.lock("sandbox-confClosed").json()["requestid"] for _ in range(3)]
    assert sent == [call.request_id for call in sandbox.calls]
    assert len(set(sent)) == 3


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1.0/oauth2/accessToken"), ("PUT", "/v2.0/x")])
def test_an_unknown_path_or_method_is_an_error_in_dingtalks_shape(
    caller: Caller, method: str, path: str
) -> None:
    answer = caller.call(method, path)
    assert code(answer) == (404, "InvalidAction.NotFound")
    assert set(answer.json()) == {"code", "requestid", "message"}


@pytest.mark.parametrize("path", ["/", "/topapi/user/get", "/v1"])
def test_an_old_path_is_an_error_in_the_older_form(caller: Caller, path: str) -> None:
    answer = caller.call("POST", path, {})
    assert (answer.status_code, answer.json()["errcode"]) == (200, 404)
    assert caller.sandbox.calls[-1].code == "404"


def test_many_threads_can_use_one_sandbox(sandbox: Sandbox) -> None:
    meetings = [sandbox.create_conference() for _ in range(40)]

    def lock(meeting: str) -> bool:
        with Caller(sandbox) as caller:
            return bool(caller.lock(meeting).json()["success"]) and not sandbox.join(meeting, "late")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lock, meetings))
    assert len(sandbox.calls_of("lock")) == 40


def test_nothing_is_left_of_a_sandbox_that_ended() -> None:
    with Sandbox(slow=30) as sandbox, Caller(sandbox) as caller:
        port = sandbox.port
        with pytest.raises(requests.Timeout):
            caller.lock("sandbox-slow", timeout=(60, 0.2))
    assert not [thread for thread in threading.enumerate() if thread.name == "dingtalk-sandbox"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)


def test_a_sandbox_can_go_away_and_come_back_on_its_port(sandbox: Sandbox) -> None:
    again = Sandbox()
    with again, Caller(again) as caller:
        assert caller.lock("sandbox-open").status_code == 200
        port = again.port
    with again, Caller(again) as caller:
        assert again.port == port != sandbox.port
        assert again.conference("sandbox-open").locked


def test_a_sandbox_forgets_its_ban_when_it_ends() -> None:
    again = Sandbox()
    with again, Caller(again) as caller:
        again.fail(Fault(code="addressBanned", duration=300))
        assert caller.lock("sandbox-open").json()["punish"] == "deny"
    with again, Caller(again) as caller:
        assert caller.lock("sandbox-open").json() == {"success": True}


def test_a_taken_port_is_an_error_at_once(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match="in use"), Sandbox(sandbox.port):
        pass


def test_it_listens_on_the_loopback_address_only(sandbox: Sandbox) -> None:
    assert sandbox.url == f"http://127.0.0.1:{sandbox.port}"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", sandbox.port), timeout=60)


CONNECTIONS = {
    "internal": {},
    "third_party": {"corp_id": Sandbox.corp_id, "suite_ticket": Sandbox.suite_ticket},
    "unified": {"corp_id": Sandbox.corp_id},
    "unpermitted": {},
}


@pytest.mark.parametrize("kind", [*CONNECTIONS, "static_token"])
@pytest.mark.parametrize("extra", [{}, {"timeout": 3}], ids=str)
def test_airflow_reads_the_same_from_the_uri_and_from_the_json(
    sandbox: Sandbox, kind: Any, extra: dict[str, Any]
) -> None:
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
    caller.authorise(fields["extra"]["access_token"])
    assert caller.lock("sandbox-open").status_code == 200
    assert "@" not in sandbox.connection_uri("static_token")
    assert sandbox.calls_of("token") == []


def test_single_fields_of_a_connection_can_be_other_ones(sandbox: Sandbox) -> None:
    fields = sandbox.connection("unified", password="wrong", extra={"timeout": 3})
    assert fields["password"] == "wrong"
    assert fields["extra"] == {"corp_id": sandbox.corp_id, "timeout": 3}
    uri = sandbox.connection_uri(
        host="127.0.0.1", port=1, schema="http", password="p@/s", extra={"timeout": 3}
    )
    assert (
        uri == f"dingtalk://{sandbox.client_id}:p%40%2Fs@127.0.0.1:1/http?__extra__=%7B%22timeout%22%3A+3%7D"
    )


def test_a_fault_can_redirect_to_another_sandbox(sandbox: Sandbox, caller: Caller) -> None:
    with Sandbox() as other:
        sandbox.fail(Fault(status=307, headers={"Location": other.url}))
        caller.lock("sandbox-open", allow_redirects=True)
        assert len(other.calls) == 1, "a caller that follows is found out"


def test_it_serves_https_on_demand(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with Sandbox(ssl_context=context) as sandbox, Caller(sandbox) as caller:
        assert sandbox.url.startswith("https://")
        with pytest.raises(requests.exceptions.SSLError):
            caller.lock("sandbox-open", verify=True)
        assert sandbox.calls == []
        trusted = str(tmp_path / "certificate.pem")
        assert caller.lock("sandbox-open", verify=trusted).json() == {"success": True}
        with pytest.raises(requests.ConnectionError):
            caller.lock("sandbox-connectionLost", verify=trusted)


def certificate(folder: Path) -> Path:
    """Return a file with a certificate for the loopback address, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sandbox")])
    now = datetime.now(timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file

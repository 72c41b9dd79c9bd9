"""How a call goes over the wire, and what becomes of everything that can go wrong there: sync and async."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Face

from airflow_provider_dingconf.dingtalk.errors import (
    CallTimeoutError,
    CertificateError,
    ConnectionLostError,
    DingTalkError,
    InvalidConnectionError,
    RedirectError,
    ResponseError,
    ServerError,
    TransientError,
)
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Certificates, RawServer

GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"success":true}'
TOKEN = "a-token-fetched-elsewhere"
LOCKED = {"conference_id": "meeting", "action": "lock", "success": True, "attempts": 1, "request_id": None}


@pytest.fixture
def leads_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what points the default connection to a server, with a static access token."""

    def point(url: str, **extra: Any) -> None:
        fields = {"conn_type": "dingtalk", "host": url, "extra": {"access_token": TOKEN} | extra}
        monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(fields))

    return point


def lock(face: Face, **options: Any) -> Any:
    """Lock a meeting in one attempt."""
    return face.do("lock_conference", "meeting", hook=face.hook(**{"max_attempts": 1} | options))


def failure(face: Face, **options: Any) -> DingTalkError:
    """Return the error that a lock in one attempt ends in."""
    with pytest.raises(DingTalkError) as caught:
        lock(face, **options)
    assert TOKEN not in f"{caught.value} {vars(caught.value)}"
    return caught.value


def read_and_send(answer: bytes) -> Callable[[RawServer, socket.socket, Any], None]:
    """Return a server that answers one request and hangs up."""

    def serve(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        connection.sendall(answer)

    return serve


# What is sent


def test_nothing_of_the_client_is_sent_that_was_not_asked_for(
    face: Face, raw_server: Any, leads_to: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login someone password something")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    server = raw_server(GOOD.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b; Path=/\r\n\r\n"))
    leads_to(server.url)
    assert face.lock_each(["meeting"] * 2, face.hook()) == [LOCKED] * 2
    assert len(server.requests) == 2
    for head in server.requests:
        names = {line.partition(":")[0].lower() for line in head.splitlines()[1:]}
        assert names <= {
            "host", "user-agent", "accept", "accept-encoding", "connection", "content-type", "content-length",
            "x-acs-dingtalk-access-token",
        }  # fmt: skip


@pytest.mark.parametrize(
    "conference_id", ["-._~!$&'()*+,;=:@", "...", "a..b", "~a~", "a=b&c=d", "A%".strip("%")]
)
def test_a_conference_id_goes_out_as_it_is(
    face: Face, raw_server: Any, leads_to: Any, conference_id: str
) -> None:
    server = raw_server(GOOD)
    leads_to(server.url)
    face.do("lock_conference", conference_id)
    path = f"/v1.0/conference/videoConferences/{conference_id}/lock"
    assert server.requests[0].splitlines()[0] == f"POST {path} HTTP/1.1"


def test_connections_are_kept_between_calls_and_closed_in_the_end(
    face: Face, raw_server: Any, leads_to: Any
) -> None:
    server = raw_server(GOOD)
    leads_to(server.url)
    assert face.lock_each(["meeting"] * 3, face.hook()) == [LOCKED] * 3
    assert (len(server.requests), server.connections) == (3, 1)
    face.close()
    server.wait_until_hung_up()


def test_a_single_call_leaves_no_connection_open(face: Face, raw_server: Any, leads_to: Any) -> None:
    server = raw_server(GOOD)
    leads_to(server.url)
    assert lock(face) == LOCKED
    face.close()
    server.wait_until_hung_up()


UNKIND = {
    "server error": b"HTTP/1.1 500 X\r\nContent-Length: 100\r\n\r\n" + b"x" * 100,
    "redirect": b"HTTP/1.1 302 X\r\nLocation: /x\r\nContent-Length: 100\r\n\r\n" + b"x" * 100,
    "no HTTP": b"nonsense\r\n\r\n",
    "no content": b"HTTP/1.1 204 X\r\n\r\n",
}


@pytest.mark.parametrize("name", UNKIND)
def test_an_error_leaves_no_connection_open(face: Face, raw_server: Any, leads_to: Any, name: str) -> None:
    server = raw_server(UNKIND[name])
    leads_to(server.url)
    failure(face)
    face.close()
    assert server.connections == 1
    server.wait_until_hung_up()


def test_a_connection_that_the_server_closed_is_opened_anew(
    face: Face, raw_server: Any, leads_to: Any
) -> None:
    server = raw_server(read_and_send(GOOD))
    leads_to(server.url)
    results = face.lock_each(["meeting"] * 2, face.hook(), after=server.wait_until_hung_up)
    assert [result["success"] for result in results] == [True, True]
    assert len(server.requests) == 2


# What comes back


def test_a_response_in_chunks_is_read(face: Face, raw_server: Any, leads_to: Any) -> None:
    chunks = b'4\r\n{"su\r\nc\r\nccess":true}\r\n0\r\n\r\n'
    leads_to(raw_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks).url)
    assert lock(face) == LOCKED


def test_a_response_that_ends_with_the_connection_is_read(face: Face, raw_server: Any, leads_to: Any) -> None:
    leads_to(raw_server(read_and_send(b'HTTP/1.1 200 OK\r\n\r\n{"success":true}')).url)
    assert lock(face) == LOCKED


@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "without its length"])
def test_a_response_that_is_too_long_is_not_read_to_its_end(
    face: Face, raw_server: Any, leads_to: Any, declared: bool
) -> None:
    sent: list[int] = []

    def flood(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        length = b"Content-Length: 1000000000\r\n" if declared else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        sent.extend(connection.send(b" " * 1_000_000) for _ in range(1_000))

    server = raw_server(flood)
    leads_to(server.url)
    error = failure(face)
    assert (type(error), error.code) == (ResponseError, "unreadableAnswer")
    assert "longer than" in error.message
    face.close()
    server.wait_until_hung_up()
    assert sum(sent) < 100_000_000


BROKEN = {
    "no answer": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half a body": b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"succ',
    "half a chunk": b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"succ',
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: y\r\n" * 10_000 + b"Content-Length: 100\r\n\r\n{",
    "no status": b"HTTP/1.1 abc\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_response_that_breaks_off_or_is_missing_is_a_lost_connection(
    face: Face, raw_server: Any, leads_to: Any, name: str
) -> None:
    server = raw_server(read_and_send(BROKEN[name]))
    leads_to(server.url)
    error = failure(face)
    assert (type(error), error.code, error.http_status) == (ConnectionLostError, "connectionLost", None)
    assert server.url in error.message
    assert len(str(error)) < 1_000
    assert str(error).isprintable()


def test_a_response_that_breaks_off_in_its_head_may_pass(face: Face, raw_server: Any, leads_to: Any) -> None:
    # Python's HTTP client takes such a head for a whole one, and aiohttp does not.
    leads_to(raw_server(read_and_send(b"HTTP/1.1 200 OK\r\nContent-Le")).url)
    assert isinstance(failure(face), TransientError)


@pytest.mark.parametrize("before", ["", " " * 280], ids=["whole", "cut"])
def test_a_server_that_echoes_the_request_gives_no_secret_away(
    face: Face, raw_server: Any, leads_to: Any, before: str
) -> None:
    leads_to(raw_server(read_and_send(f"{before}{TOKEN} {TOKEN}\r\n\r\n".encode())).url)
    error = failure(face)
    assert TOKEN[:10] not in f"{error} {vars(error)}"


def test_a_fetched_token_that_a_server_echoes_is_shown_to_no_one(
    face: Face, raw_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = "a-token-fetched-from-the-server"

    def serve(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        body = json.dumps({"accessToken": fetched, "expireIn": 7200}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        server.read(file)
        connection.sendall(f"HTTP/1.1 {fetched}\r\n\r\n".encode())

    fields = {"conn_type": "dingtalk", "host": raw_server(serve).url, "login": "id", "password": "the-secret"}
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(fields))
    # One connection for both calls: its second response is the echo.
    (error,) = face.lock_each(["meeting"], face.hook(max_attempts=1))
    assert type(error) is ConnectionLostError
    assert fetched[:10] not in f"{error} {vars(error)}"


def test_a_closed_port_is_a_lost_connection(face: Face, leads_to: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    leads_to(url)
    error = failure(face)
    assert (type(error), error.code) == (ConnectionLostError, "connectionLost")
    assert url in error.message


def test_a_host_that_does_not_exist_is_a_lost_connection(face: Face, leads_to: Any) -> None:
    leads_to("https://dingtalk.invalid")
    error = failure(face)
    assert (type(error), error.code) == (ConnectionLostError, "connectionLost")
    assert "https://dingtalk.invalid" in error.message


@pytest.mark.parametrize("sent", [b"", GOOD[:-5]], ids=["nothing", "half an answer"])
@pytest.mark.parametrize("options", [{}, {"max_seconds": 0.3}], ids=["timeout", "max_seconds"])
def test_a_server_that_falls_silent_is_given_up(
    face: Face, raw_server: Any, leads_to: Any, options: dict[str, Any], sent: bytes
) -> None:
    def serve(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        connection.sendall(sent)
        file.read()

    leads_to(raw_server(serve).url, timeout=10 if options else [5, 0.2])
    error = failure(face, **options)
    assert (type(error), error.code) == (CallTimeoutError, "timeout")


@pytest.fixture
def silent() -> Iterator[int]:
    """Return the port at which an address, 127.0.0.2, takes no connection and refuses none."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.2", 0))
        listener.listen(0)
        for _ in range(3):  # which it does not accept
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def localhost_is(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what gives ``localhost`` other addresses."""

    def resolve(*addresses: str) -> None:
        def getaddrinfo(_host: object, port: object, *_: object, **__: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve


def test_a_host_with_many_addresses_has_no_more_time_than_one_with_one(
    face: Face, silent: int, leads_to: Any, localhost_is: Any
) -> None:
    localhost_is(*["127.0.0.2"] * 20)
    leads_to(f"http://localhost:{silent}")
    began = time.monotonic()
    error = failure(face, max_seconds=1)
    assert (type(error), error.code) == (CallTimeoutError, "timeout")
    assert time.monotonic() - began < 15  # and not a second for each


def test_of_a_host_with_many_addresses_one_that_answers_is_found(
    face: Face, raw_server: Any, leads_to: Any, localhost_is: Any
) -> None:
    url = raw_server(GOOD).url
    localhost_is("127.0.0.3", "127.0.0.1")
    leads_to(url.replace("127.0.0.1", "localhost"))
    assert lock(face) == LOCKED


def test_a_server_that_drips_its_response_is_given_up(face: Face, raw_server: Any, leads_to: Any) -> None:
    def drip(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        for byte in GOOD:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    leads_to(raw_server(drip).url)
    # All of it would take 4 seconds.
    assert type(failure(face, max_seconds=0.5)) is CallTimeoutError


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_and_the_token_does_not_go_along(
    face: Face, sandbox: Sandbox, conn: Any, status: int
) -> None:
    with Sandbox() as other:
        sandbox.fail(Fault(call="lock", status=status, headers={"Location": f"{other.url}/v1.0/x"}))
        with pytest.raises(RedirectError, match="not followed") as caught:
            face.do("lock_conference", "sandbox-open")
        assert (caught.value.code, caught.value.http_status) == ("redirect", status)
        assert other.calls == []
        assert len(sandbox.calls_of("lock")) == 1


# Proxies


@pytest.mark.parametrize("variable", [None, "http_proxy", "all_proxy"])
def test_a_proxy_of_the_connection_is_used_and_no_other(
    face: Face, raw_server: Any, leads_to: Any, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    proxy, other = raw_server(GOOD), raw_server(GOOD)
    if variable:
        monkeypatch.setenv(variable, other.url)
    leads_to("http://127.0.0.1:9", proxies={"http": proxy.url})
    assert lock(face) == LOCKED
    assert proxy.requests[0].startswith(
        "POST http://127.0.0.1:9/v1.0/conference/videoConferences/meeting/lock "
    )
    assert other.connections == 0


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_used_and_sees_the_host_alone(
    face: Face, raw_server: Any, leads_to: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    proxy = raw_server(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\n\r\n")
    monkeypatch.setenv(variable, proxy.url)
    leads_to("https://dingtalk.invalid")
    assert type(failure(face)) is ConnectionLostError
    (seen,) = proxy.requests
    assert seen.startswith("CONNECT dingtalk.invalid:443 ")
    assert TOKEN not in seen
    monkeypatch.setenv("no_proxy", "dingtalk.invalid")
    assert type(failure(face)) is ConnectionLostError
    assert proxy.connections == 1, "no_proxy is heeded"


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_this_machine_is_reached_without_the_proxies_of_the_environment(
    face: Face, raw_server: Any, leads_to: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    server, proxy = raw_server(GOOD), raw_server(GOOD)
    monkeypatch.setenv(variable, proxy.url)
    leads_to(server.url)
    assert lock(face) == LOCKED
    assert (len(server.requests), proxy.connections) == (1, 0)


def test_a_proxy_that_is_down_is_a_lost_connection_without_its_password(face: Face, leads_to: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    leads_to("http://127.0.0.1:9", proxies={"http": f"http://user:hidden@127.0.0.1:{port}"})
    error = failure(face)
    assert type(error) is ConnectionLostError
    assert "hidden" not in str(error)


# Certificates


def reach(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    """Point the default connection to a sandbox."""
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", sandbox.connection_json(extra=extra))


def test_an_unknown_certificate_is_an_error_and_nothing_is_sent(
    face: Face, tls_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(tls_sandbox, monkeypatch)
    with pytest.raises(CertificateError, match=f"certificate of {tls_sandbox.url} is not valid") as caught:
        face.do("lock_conference", "sandbox-open")
    assert caught.value.code == "badCertificate"
    assert caught.value.attempts == 1
    assert tls_sandbox.calls == []


def test_a_certificate_of_another_host_is_an_error(
    face: Face, tls_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    url = tls_sandbox.url.replace("127.0.0.1", "localhost")
    fields = tls_sandbox.connection(host=url, extra={"verify": certificates.authority})
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(fields))
    with pytest.raises(CertificateError):
        face.do("lock_conference", "sandbox-open")
    assert tls_sandbox.calls == []


@pytest.mark.parametrize("how", ["verify file", "verify directory", "verify off", "environment"])
def test_a_named_authority_is_trusted(
    face: Face,
    tls_sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,
    tmp_path: Path,
    how: str,
) -> None:
    extra: dict[str, Any] = {}
    if how == "verify file":
        extra["verify"] = certificates.authority
    elif how == "verify directory":
        # As `openssl rehash` names a file.
        (tmp_path / f"{_subject_hash(certificates.authority)}.0").symlink_to(certificates.authority)
        extra["verify"] = str(tmp_path)
    elif how == "verify off":
        extra["verify"] = False
    else:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificates.authority)
    reach(tls_sandbox, monkeypatch, **extra)
    assert face.do("lock_conference", "sandbox-open")["success"]


def _subject_hash(file: str) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", file], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no openssl to name the files of a directory")
    return done.stdout.strip()


def test_if_an_authority_is_named_no_other_is_trusted(
    face: Face,
    tls_sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,
    make_certificates: Callable[[Path], Certificates],
    tmp_path: Path,
) -> None:
    # The system trusts the server's authority; the connection names another one.
    monkeypatch.setenv("SSL_CERT_FILE", certificates.authority)
    reach(tls_sandbox, monkeypatch, verify=make_certificates(tmp_path).authority)
    with pytest.raises(CertificateError):
        face.do("lock_conference", "sandbox-open")


def test_a_file_of_authorities_that_is_renewed_counts_in_a_process_that_lives_on(
    face: Face,
    tls_sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,
    make_certificates: Callable[[Path], Certificates],
    tmp_path: Path,
) -> None:
    file = Path(make_certificates(tmp_path).authority)
    reach(tls_sandbox, monkeypatch, verify=str(file))
    with pytest.raises(CertificateError):
        face.do("lock_conference", "sandbox-open")
    renewed = file.with_suffix(".new")
    renewed.write_bytes(Path(certificates.authority).read_bytes())
    renewed.replace(file)
    assert face.do("lock_conference", "sandbox-open")["success"]


def test_what_the_system_trusts_counts_the_same_for_sync_and_async(
    face: Face, tls_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    # requests does not heed this variable.
    monkeypatch.setenv("SSL_CERT_FILE", certificates.authority)
    reach(tls_sandbox, monkeypatch)
    with pytest.raises(CertificateError):
        face.do("lock_conference", "sandbox-open")


@pytest.mark.parametrize("separate", [True, False], ids=["certificate and key", "one file"])
def test_a_client_certificate_is_shown(
    face: Face, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, tmp_path: Path, separate: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    context.load_verify_locations(certificates.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    both = tmp_path / "both.pem"
    both.write_text("".join(Path(file).read_text() for file in certificates.client))
    cert = list(certificates.client) if separate else str(both)
    with Sandbox(ssl_context=context) as sandbox:
        reach(sandbox, monkeypatch, verify=certificates.authority, cert=cert)
        assert face.do("lock_conference", "sandbox-open")["success"]
        reach(sandbox, monkeypatch, verify=certificates.authority)
        with pytest.raises(ConnectionLostError):
            lock(face)


@pytest.mark.parametrize("field", ["verify", "cert"])
def test_a_file_that_holds_no_certificate_is_one_clear_error(
    face: Face, tls_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str
) -> None:
    file = tmp_path / "nonsense.pem"
    file.write_text("nonsense")
    reach(tls_sandbox, monkeypatch, **{field: str(file)})
    with pytest.raises(InvalidConnectionError, match=f"^connection 'dingtalk_default', extra '{field}'"):
        face.do("lock_conference", "sandbox-open")
    assert tls_sandbox.calls == []


def test_https_goes_through_a_proxy(
    face: Face,
    raw_server: Any,
    tls_sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,
) -> None:
    def tunnel(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", tls_sandbox.port)) as inner:
            back = threading.Thread(target=_relay, args=(inner, connection), daemon=True)
            back.start()
            _relay(connection, inner)
            back.join(60)

    proxy = raw_server(tunnel)
    proxies = {"https": proxy.url.replace("//", "//user:hidden@")}
    reach(tls_sandbox, monkeypatch, verify=certificates.authority, proxies=proxies)
    assert face.do("lock_conference", "sandbox-open")["success"]
    assert proxy.requests[0].startswith(f"CONNECT 127.0.0.1:{tls_sandbox.port} ")
    assert TOKEN not in proxy.requests[0]
    assert all("proxy" not in name.lower() for call in tls_sandbox.calls for name, _ in call.headers)


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def test_a_gateways_page_is_an_error_of_the_servers_side(face: Face, sandbox: Sandbox, conn: Any) -> None:
    with pytest.raises(ServerError) as caught:
        face.do("lock_conference", "sandbox-gateway", hook=face.hook(max_attempts=1))
    assert caught.value.http_status == 502

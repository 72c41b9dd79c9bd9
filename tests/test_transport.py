"""Calls over the wire: what is sent, what a broken response ends in, certificates, and real proxies."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import make_certificates
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from airflow_provider_dingconf.dingtalk.errors import (
    CallTimeoutError,
    CertificateError,
    ConnectionLostError,
    DingTalkError,
    InvalidInputError,
    RedirectError,
    ResponseError,
    TransientError,
)
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Certificates, Face, RawServer

pytestmark = pytest.mark.filterwarnings("error:.*(BasicAuth|proxy_auth).*:DeprecationWarning")

GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"success":true}'
TOKEN = "a-token-fetched-elsewhere"
LOCKED = {"conference_id": "meeting", "action": "lock", "success": True, "attempts": 1, "request_id": None}


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what points the default connection to a host: with a static token, unless other fields are given."""

    def connect(host: str, fields: dict[str, Any] | None = None, **extra: Any) -> None:
        fields = fields or {"extra": {"access_token": TOKEN} | extra}
        conn = json.dumps({"conn_type": "dingtalk", "host": host} | fields)
        monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", conn)

    return connect


def lock(face: Face, **options: Any) -> Any:
    """Lock a meeting in one attempt."""
    return face.do("lock_conference", "meeting", hook=face.hook(**{"max_attempts": 1} | options))


def failure(face: Face, **options: Any) -> DingTalkError:
    """Return the error of a lock that is tried once."""
    with pytest.raises(DingTalkError) as caught:
        lock(face, **options)
    assert TOKEN not in f"{caught.value} {vars(caught.value)}"
    return caught.value


# What is sent


def test_only_the_headers_of_the_call_are_sent(
    face: Face, raw_server: Any, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login someone password something")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    server = raw_server(GOOD.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b; Path=/\r\n\r\n"))
    connect(server.url)
    assert face.lock_each(["meeting"] * 2, face.hook()) == [LOCKED] * 2
    assert len(server.requests) == 2
    for head in server.requests:
        names = {line.partition(":")[0].lower() for line in head.splitlines()[1:]}
        of_the_call = {"host", "accept", "content-type", "content-length", "x-acs-dingtalk-access-token"}
        assert names - {"user-agent", "accept-encoding", "connection"} == of_the_call


@pytest.mark.parametrize(("hangs_up", "connections"), [(False, 1), (True, 2)], ids=["kept", "closed"])
def test_a_connection_is_kept_between_calls_unless_the_server_closes_it(
    face: Face, raw_server: Any, connect: Any, hangs_up: bool, connections: int
) -> None:
    server = raw_server(GOOD, hangs_up=hangs_up)
    connect(server.url)
    after = server.wait_until_hung_up if hangs_up else (lambda: None)
    results = face.lock_each(["meeting"] * 2, face.hook(), after)
    assert [result["success"] for result in results] == [True, True]
    assert (len(server.requests), server.connections) == (2, connections)
    face.close()
    server.wait_until_hung_up()


# What comes back; tests/faults has all the ways in which a response can be broken


@pytest.mark.parametrize(
    "rest",
    [
        b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"su\r\nc\r\nccess":true}\r\n0\r\n\r\n',
        b'\r\n{"success":true}',
    ],
    ids=["in chunks", "until the connection ends"],
)
def test_a_response_without_its_length_is_read(
    face: Face, raw_server: Any, connect: Any, rest: bytes
) -> None:
    connect(raw_server(b"HTTP/1.1 200 OK\r\n" + rest, hangs_up=True).url)
    assert lock(face) == LOCKED


def test_a_response_that_is_too_long_is_not_read_to_its_end(
    face: Face, raw_server: Any, connect: Any
) -> None:
    sent: list[int] = []

    def flood(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        sent.extend(connection.send(b" " * 1_000_000) for _ in range(1_000))

    server = raw_server(flood)
    connect(server.url)
    error = failure(face)
    assert (type(error), error.code) == (ResponseError, "unreadableAnswer")
    assert "longer than" in error.message
    face.close()
    server.wait_until_hung_up()
    assert sum(sent) < 100_000_000


@pytest.mark.parametrize("what", ["closed port", "unknown host", "no response", "no HTTP", "half a body"])
def test_a_missing_or_broken_response_is_a_lost_connection_to_the_host_that_is_named(
    face: Face, raw_server: Any, connect: Any, closed_port: int, what: str
) -> None:
    sent = {"no response": b"", "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n", "half a body": GOOD[:-5]}
    urls = {"closed port": f"http://127.0.0.1:{closed_port}", "unknown host": "https://dingtalk.invalid"}
    url = urls.get(what) or raw_server(sent[what], hangs_up=True).url
    connect(url)
    error = failure(face)
    assert (type(error), error.code, error.http_status) == (ConnectionLostError, "connectionLost", None)
    assert url in error.message


@pytest.fixture
def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("before", ["", " " * 280], ids=["whole", "cut"])
@pytest.mark.parametrize("kind", ["static", "fetched"])
def test_a_server_that_echoes_the_request_gives_no_secret_away(
    face: Face, raw_server: Any, connect: Any, before: str, kind: str
) -> None:
    def echo(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        if kind == "fetched":
            body = json.dumps({"accessToken": TOKEN, "expireIn": 7200}).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            server.read(file)
            connection.sendall(b"HTTP/1.1 ")
        connection.sendall(f"{before}{TOKEN} {TOKEN}\r\n\r\n".encode())

    connect(raw_server(echo).url, {"login": "id", "password": "secret"} if kind == "fetched" else None)
    # Over one connection, whose second response is the echo.
    (error,) = face.lock_each(["meeting"], face.hook(max_attempts=1))
    assert type(error) is ConnectionLostError
    assert TOKEN[:10] not in f"{error} {vars(error)}"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return a port of 127.0.0.2 that neither takes nor refuses connections."""
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

    def resolve(*addresses: str, takes: float = 0.0) -> None:
        def getaddrinfo(_host: object, port: object, *_: object, **__: object) -> list[Any]:
            time.sleep(takes)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve


def test_a_host_with_many_addresses_has_no_more_time_than_one_with_one(
    face: Face, silent_port: int, connect: Any, localhost_is: Any
) -> None:
    localhost_is(*["127.0.0.2"] * 20)
    connect(f"http://localhost:{silent_port}")
    began = time.monotonic()
    error = failure(face, max_seconds=0.5)
    assert (type(error), error.code) == (CallTimeoutError, "timeout")
    assert time.monotonic() - began < 9  # and not half a second for each


def test_a_host_is_reached_at_whichever_of_its_addresses_responds(
    face: Face, raw_server: Any, connect: Any, localhost_is: Any
) -> None:
    localhost_is("127.0.0.3", "127.0.0.1")
    connect(raw_server(GOOD).url.replace("127.0.0.1", "localhost"))
    assert lock(face) == LOCKED


def test_a_name_server_may_take_longer_than_a_connection(
    face: Face, raw_server: Any, connect: Any, localhost_is: Any
) -> None:
    localhost_is("127.0.0.1", takes=0.6)
    connect(raw_server(GOOD).url.replace("127.0.0.1", "localhost"), timeout=[0.2, 10])
    assert face.do("lock_conference", "sandbox-open", hook=face.hook(max_attempts=1))["success"]


def test_a_server_that_drips_its_response_is_given_up(face: Face, raw_server: Any, connect: Any) -> None:
    def drip(server: RawServer, connection: socket.socket, file: Any) -> None:
        server.read(file)
        for byte in GOOD:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    connect(raw_server(drip).url)
    # All of it would take 4 seconds.
    assert type(failure(face, max_seconds=0.5)) is CallTimeoutError


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


# Certificates


class TlsFace:
    """Locks a meeting over https.

    :param face: the hook's.
    :param sandbox: what is called.
    """

    def __init__(self, face: Face, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self._face = face
        self._monkeypatch = monkeypatch
        self.sandbox = sandbox

    def lock(self, host: str = "127.0.0.1", **extra: Any) -> None:
        """Lock a meeting over a connection with this extra."""
        url = self.sandbox.url.replace("127.0.0.1", host)
        conn = self.sandbox.connection_json(host=url, extra=extra)
        self._monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", conn)
        lock(self._face)

    def is_refused(self, **options: Any) -> None:
        """Check that the server's certificate is refused, and nothing sent."""
        with pytest.raises(CertificateError, match="is not valid") as caught:
            self.lock(**options)
        assert (caught.value.code, caught.value.attempts) == ("badCertificate", 1)
        assert self.sandbox.calls == []


@pytest.fixture
def tls(face: Face, tls_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> TlsFace:
    """Return what locks a meeting over https."""
    tls_sandbox.create_conference(conference_id="meeting")
    return TlsFace(face, tls_sandbox, monkeypatch)


@pytest.fixture
def other_authority(tmp_path: Path) -> Path:
    """Return the file of an authority that does not know the server."""
    return Path(make_certificates(tmp_path).authority)


@pytest.mark.parametrize("variable", [None, "SSL_CERT_FILE"], ids=["by anyone", "but by OpenSSL"])
def test_an_unknown_certificate_is_an_error_and_nothing_is_sent(
    tls: TlsFace, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, variable: str | None
) -> None:
    if variable:  # requests does not heed it
        monkeypatch.setenv(variable, certificates.authority)
    tls.is_refused()


def test_a_certificate_of_another_host_is_an_error(tls: TlsFace, certificates: Certificates) -> None:
    tls.is_refused(host="localhost", verify=certificates.authority)


def test_if_an_authority_is_named_no_other_is_trusted(
    tls: TlsFace, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, other_authority: Path
) -> None:
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(variable, certificates.authority)
    tls.is_refused(verify=str(other_authority))


@pytest.mark.parametrize("how", ["file", "directory", "off", "environment"])
def test_a_named_authority_is_trusted(
    tls: TlsFace, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, tmp_path: Path, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificates.authority)
        tls.lock()
        return
    if how == "directory":
        command = ["openssl", "x509", "-hash", "-noout", "-in", certificates.authority]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip("no openssl to name the files of a directory")
        (tmp_path / f"{done.stdout.strip()}.0").symlink_to(certificates.authority)
    tls.lock(verify={"file": certificates.authority, "directory": str(tmp_path), "off": False}[how])


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_authorities_that_cannot_be_read_is_named_as_such(
    tls: TlsFace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, content: str | None
) -> None:
    file = tmp_path / "authorities.pem"
    if content:
        file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(
        ConnectionLostError, match=f"a file of certificates cannot be read.*{variable}"
    ) as caught:
        tls.lock()
    assert "firewalls" not in str(caught.value)
    assert not caught.value.uncertain


def test_a_renewed_file_of_authorities_counts_in_a_running_process(
    tls: TlsFace, certificates: Certificates, other_authority: Path
) -> None:
    tls.is_refused(verify=str(other_authority))
    renewed = other_authority.with_suffix(".new")
    renewed.write_bytes(Path(certificates.authority).read_bytes())
    renewed.replace(other_authority)
    tls.lock(verify=str(other_authority))


@pytest.mark.parametrize("how", ["a list", "a list as a text", "one file"])
def test_a_client_certificate_is_shown(
    face: Face, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, tmp_path: Path, how: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    context.load_verify_locations(certificates.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    both = tmp_path / "both.pem"
    both.write_text("".join(Path(file).read_text() for file in certificates.client))
    with Sandbox(ssl_context=context) as sandbox:
        sandbox.create_conference(conference_id="meeting")
        tls = TlsFace(face, sandbox, monkeypatch)
        pair = list(certificates.client)
        cert = {"a list": pair, "a list as a text": json.dumps(pair), "one file": str(both)}[how]
        tls.lock(verify=certificates.authority, cert=cert)
        with pytest.raises(ConnectionLostError):
            tls.lock(verify=certificates.authority)


def test_a_key_that_has_got_a_password_is_an_error_and_no_terminal_is_asked_for_it(
    certificates: Certificates, connect: Any, tmp_path: Path
) -> None:
    key = tmp_path / "client.key"
    shutil.copy(certificates.client[1], key)
    private = load_pem_private_key(key.read_bytes(), None)
    password = BestAvailableEncryption(b"password")
    encrypted = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password)
    connect("https://127.0.0.1:9", cert=[certificates.client[0], str(key)])
    program = f"""
from pathlib import Path
from {DingTalkConferenceHook.__module__} import DingTalkConferenceHook
hook = DingTalkConferenceHook(max_attempts=1)
hook.settings
Path({str(key)!r}).write_bytes({encrypted!r})
hook.lock_conference("meeting")
"""
    command = [sys.executable, "-c", program]
    options: Any = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        try:
            process.wait(60)  # the input stays open
        finally:
            process.kill()
        assert b"a file of certificates cannot be read" in process.stderr.read()


# Proxies; which one is used, test_proxies has

PASSWORD = "w+rd#of-the-pröxy"
WRITTEN = "w%2Brd%23of-the-pr%C3%B6xy"
SENT = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
FORMS = (PASSWORD, WRITTEN, SENT, "w%2Brd", "w+rd", "of-the-pr", json.dumps(PASSWORD)[1:-1])


class ForwardProxy:
    """A proxy that asks for credentials, and forwards every request to one port of this machine.

    :param raw_server: starts the server.
    :param sandbox: where to.
    """

    def __init__(self, raw_server: Callable[..., RawServer], sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.statuses: list[int] = []
        """The status of one response after another, before it forwards: 200 forwards."""
        self.server = raw_server(self._serve)
        self.url = f"http://user:{WRITTEN}@127.0.0.1:{self.server.port}"

    @property
    def targets(self) -> list[str]:
        """The method and the target of each request."""
        return [head.partition(" HTTP/1.1")[0] for head in self.server.requests]

    def _serve(self, server: RawServer, connection: socket.socket, file: Any) -> None:
        body = server.read(file)
        if body is None:
            return
        head = server.requests[-1]
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200 or f"\nProxy-Authorization: Basic {SENT}\r" not in head:
            # As badly behaved as a proxy can be: it quotes what it was sent, the credentials included.
            page = f"<html><title>{PASSWORD} {WRITTEN} {status} by the proxy: {head}</title></html>".encode()
            reason = f"Refused user:{PASSWORD} {SENT}".encode()
            fields = b"Content-Type: text/html\r\nConnection: close\r\nContent-Length: %d" % len(page)
            connection.sendall(b"HTTP/1.1 %d %s\r\n%s\r\n\r\n%s" % (status, reason, fields, page))
            return
        with socket.create_connection(("127.0.0.1", self.sandbox.port)) as inner:
            if head.startswith("CONNECT "):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                inner.sendall(self._forwarded(head) + body)
            back = threading.Thread(target=_relay, args=(inner, connection), daemon=True)
            back.start()
            _relay(connection, inner)
            back.join(60)

    def _forwarded(self, head: str) -> bytes:
        """Return a request as the server behind gets it: without the host and the credentials."""
        head = re.sub(r"^(\S+) (http|ws)://[^/]+", r"\1 ", head)
        head = re.sub(r"(?im)^proxy-authorization: .*\r\n", "", head)
        return (head if "Upgrade:" in head else f"{head}Connection: close\r\n").encode() + b"\r\n"


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest,
    raw_server: Any,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> ForwardProxy:
    """Return a proxy that the default connection leads through.

    The parameter says how: over ``https``, over ``http``, or over https by the proxy of the ``environment``.
    """
    caplog.set_level(logging.DEBUG)
    sandbox = request.getfixturevalue("sandbox" if request.param == "http" else "tls_sandbox")
    proxy = ForwardProxy(raw_server, sandbox)
    extra = {"verify": certificates.authority, "proxies": {request.param: proxy.url}}
    fields = sandbox.connection(extra=extra)
    if request.param == "environment":
        # No proxy of the environment leads to this machine, and no certificate is for another.
        fields |= {"host": "https://dingtalk.invalid", "extra": {"verify": False}}
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(fields))
    return proxy


def through(*how: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("proxy", how, indirect=True)


def check_hidden(caplog: pytest.LogCaptureFixture, error: DingTalkError | None = None) -> None:
    """Check that no form of the password is in the log, nor in the error."""
    shown = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    if error is not None:
        shown += "".join(traceback.format_exception(error)) + f"{error} {vars(error)} {error.as_dict()}"
    assert [form for form in FORMS if form in shown] == []


def check_locks_through(face: Face, proxy: ForwardProxy, caplog: pytest.LogCaptureFixture) -> None:
    """Check that a lock and the test of a connection go through a proxy, whose password nobody else sees."""
    assert face.do("lock_conference", "sandbox-open")["success"]
    assert face.do("test_connection")[0]
    assert len(proxy.sandbox.calls_of("lock")) == 1
    assert proxy.targets
    for call in proxy.sandbox.calls:
        assert not [name for name, _ in call.headers if "proxy" in name.lower() or name == "Authorization"]
    check_hidden(caplog)


@through("https", "environment")
@pytest.mark.parametrize("face", ["sync", "async"], indirect=True)
def test_https_goes_through_a_proxy(
    face: Face, proxy: ForwardProxy, caplog: pytest.LogCaptureFixture
) -> None:
    check_locks_through(face, proxy, caplog)
    assert all(target.startswith("CONNECT ") for target in proxy.targets)
    assert not any("x-acs-dingtalk-access-token" in head for head in proxy.server.requests)


@through("http")
def test_plain_http_goes_through_a_proxy_of_this_machine(
    face: Face, proxy: ForwardProxy, caplog: pytest.LogCaptureFixture
) -> None:
    check_locks_through(face, proxy, caplog)
    assert all(target.startswith(f"POST {proxy.sandbox.url}/") for target in proxy.targets)


def test_a_proxy_of_the_environment_is_used_and_sees_the_host_alone(
    face: Face, raw_server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = raw_server(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\n\r\n")
    monkeypatch.setenv("https_proxy", proxy.url)
    connect("https://dingtalk.invalid")
    error = failure(face)
    assert type(error) is ConnectionLostError
    assert not error.uncertain  # the request itself was never sent
    (seen,) = proxy.requests
    assert seen.startswith("CONNECT dingtalk.invalid:443 ")
    assert TOKEN not in seen


@pytest.mark.parametrize("hangs_up", [False, True], ids=["silent", "hangs up"])
def test_a_call_that_a_proxy_does_not_pass_on_was_not_sent(
    face: Face, raw_server: Any, connect: Any, hangs_up: bool
) -> None:
    proxy = raw_server(b"", hangs_up=hangs_up)
    connect("https://dingtalk.invalid", proxies={"https": proxy.url}, timeout=[0.3, 0.3])
    error = failure(face)
    assert type(error) is (ConnectionLostError if hangs_up else CallTimeoutError)
    assert f"https://dingtalk.invalid through the proxy {proxy.url}" in error.message
    assert not error.uncertain
    assert [head.split(" ")[0] for head in proxy.requests] == ["CONNECT"]


def test_a_call_whose_time_is_over_while_it_connects_was_not_sent(
    face: Face, raw_server: Any, connect: Any
) -> None:
    server = raw_server(lambda _server, _connection, file: file.read())  # no TLS handshake ends
    connect(server.url.replace("http:", "https:"))
    error = failure(face, max_seconds=0.3)
    assert type(error) is CallTimeoutError
    assert not error.uncertain


async def test_a_lock_that_is_cancelled_before_it_is_sent_is_not_undone(
    raw_server: Any, connect: Any
) -> None:
    server = raw_server(lambda _server, _connection, file: file.read())  # no TLS handshake ends
    connect(server.url.replace("http:", "https:"))
    locking = asyncio.ensure_future(DingTalkConferenceHook().alock_conference("meeting"))
    while not server.connections:
        await asyncio.sleep(0.02)
    locking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await locking
    assert server.connections == 1, "an unlock would let in whom another lock keeps out"


def test_an_error_names_the_proxy_that_has_no_address(
    face: Face, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    connect("https://dingtalk.invalid")
    through = "no response from https://dingtalk.invalid through the proxy http://proxy.invalid:3128: "
    assert failure(face).message.startswith(through)


def test_this_machine_is_reached_without_the_proxies_of_the_environment(
    face: Face, raw_server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = raw_server(GOOD), raw_server(GOOD)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, proxy.url)
    connect(server.url)
    assert lock(face) == LOCKED
    assert (len(server.requests), proxy.connections) == (1, 0)


@through("https", "http", "environment")
@pytest.mark.parametrize("status", [407, 502, None], ids=["407", "502", "down"])
def test_a_proxy_that_refuses_or_is_down_is_an_error_without_its_password(
    face: Face, proxy: ForwardProxy, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    if status is None:
        proxy.server.close()
    proxy.statuses = [status or 200] * 9
    with pytest.raises(DingTalkError) as caught:
        face.do("lock_conference", "sandbox-open", hook=face.hook(max_attempts=1))
    error = caught.value
    assert str(status or "") in str(error)
    if status is None or proxy.targets[0].startswith("CONNECT "):
        assert type(error) is ConnectionLostError
        assert f" through the proxy {proxy.server.url}: " in error.message
        assert ("Basic authentication" in str(error)) is (status == 407)
    assert isinstance(error, TransientError) or status == 407
    assert proxy.sandbox.calls == []
    check_hidden(caplog, error)


def test_a_socks_proxy_of_the_environment_is_refused_before_a_call(
    face: Face, connect: Any, monkeypatch: pytest.MonkeyPatch, raw_server: Any
) -> None:
    server = raw_server(b"")
    connect("https://dingtalk.invalid")
    monkeypatch.setenv("HTTPS_PROXY", f"socks5h://user:{WRITTEN}@127.0.0.1:{server.port}")
    with pytest.raises(InvalidInputError, match=r"^environment variable HTTPS_PROXY: .*SOCKS") as caught:
        lock(face)
    assert WRITTEN not in str(caught.value)
    assert server.connections == 0


async def watch_events(until: Callable[[], object]) -> None:
    """Let a trigger watch the events of the default connection until something holds."""
    pytest.importorskip("airflow.sdk", reason="events are for Airflow 3")
    from airflow_provider_dingconf.client.event_stream import StreamOptions
    from airflow_provider_dingconf.triggers import ConferenceEventTrigger

    class QuickTrigger(ConferenceEventTrigger):
        stream_options = StreamOptions(join=(0.0, 0.0))

    trigger = QuickTrigger()
    watching = asyncio.ensure_future(anext(trigger.run()))
    while not until():
        assert not watching.done(), watching.result()
        await asyncio.sleep(0.02)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    await trigger.cleanup()


@through("https", "http")
async def test_an_event_stream_goes_through_the_proxy(
    proxy: ForwardProxy, caplog: pytest.LogCaptureFixture
) -> None:
    await watch_events(lambda: proxy.sandbox.streams)
    assert len(proxy.targets) >= 2
    address = f"127.0.0.1:{proxy.sandbox.port}"
    wanted = (f"CONNECT {address}", f"GET ws://{address}/", f"GET http://{address}/")
    assert proxy.targets[-1].startswith(wanted)
    check_hidden(caplog)


@through("https", "http")
@pytest.mark.parametrize("status", [407, 502])
async def test_a_proxy_that_refuses_an_event_stream_is_logged_without_its_password(
    proxy: ForwardProxy, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.statuses = [200, *[status] * 99]  # the call for the stream's address succeeds
    await watch_events(lambda: f"HTTP {status}" in caplog.text)
    assert proxy.sandbox.streams == 0
    check_hidden(caplog)

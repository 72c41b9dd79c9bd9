"""Which proxy is asked, and calls and event streams through a real one: its password is shown nowhere."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import socket
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.client.settings import Settings
from airflow_provider_dingconf.dingtalk.errors import (
    ConnectionLostError,
    DingTalkError,
    InvalidConnectionError,
    InvalidInputError,
    TransientError,
)
from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Certificates, Face, RawServer

API = "https://api.dingtalk.io"
STREAM = "wss://wss-open-connection.dingtalk.com:443/connect?ticket=t"
SYNC_TOO = pytest.mark.parametrize("face", ["sync", "async"], indirect=True)
"""Both run the same coroutine, so one test or two of each method show that waiting for it works."""


def proxy_of(url: str, **own: str) -> str | None:
    """Return the proxy that a connection with these proxies has for a URL."""
    proxies = {key.replace("__", "://").replace("_", "."): value for key, value in own.items()}
    proxy = Settings(conn_id="c", base_url=API, proxies=proxies).proxy_for(url)
    return proxy and proxy.url


# Which proxy


@pytest.mark.parametrize(
    ("url", "own", "expected"),
    [
        (API, {"https": "http://p:1"}, "http://p:1"),
        (API, {"https": "p:1"}, "http://p:1"),
        (API, {"https": "p"}, "http://p"),
        (API, {"https": "https://P.Example:1/"}, "https://p.example:1"),
        (API, {"https": " http://[::1]:1 "}, "http://[::1]:1"),
        (API, {"HTTPS": "HTTP://my_proxy:1"}, "http://my_proxy:1"),
        (API, {"http": "http://p:1"}, None),
        (API, {"all": "http://p:1"}, "http://p:1"),
        (API, {"all": "http://p:1", "https": "http://p:2"}, "http://p:2"),
        (API, {"https": "http://p:1", "https__api_dingtalk_io": "http://p:2"}, "http://p:2"),
        (API, {"https": "http://p:1", "all__api_dingtalk_io": "http://p:2"}, "http://p:1"),
        (API, {"all": "http://p:1", "all__api_dingtalk_io": "http://p:2"}, "http://p:2"),
        (API, {"https__api_dingtalk_com": "http://p:1"}, None),
        (STREAM, {"https": "http://p:1"}, "http://p:1"),
        (STREAM, {"all": "p:1"}, "http://p:1"),
        (STREAM, {"http": "http://p:1"}, None),
        (STREAM, {"https__wss-open-connection_dingtalk_com": "http://p:1"}, "http://p:1"),
        ("ws://127.0.0.1:9/", {"http": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
        ("https://127.0.0.1:9", {"https": "http://p:1"}, "http://p:1"),
        ("https://[2001:db8::1]:9", {"https__[2001:db8::1]": "http://p:1"}, "http://p:1"),
    ],
)
def test_the_proxy_of_the_connection(url: str, own: dict[str, str], expected: str | None) -> None:
    assert proxy_of(url, **own) == expected


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        (API, {"https_proxy": "http://p:1"}, "http://p:1"),
        (API, {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        (API, {"HTTP_PROXY": "http://p:1"}, None),
        (API, {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        (API, {"all_proxy": "p:1"}, "http://p:1"),
        (API, {"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:2"}, "http://p:2"),
        (API, {"https_proxy": "http://p:1", "HTTPS_PROXY": "http://p:2"}, "http://p:1"),
        (API, {"https_proxy": "", "HTTPS_PROXY": "http://p:2"}, None),
        (API, {"HTTPS_PROXY": "", "ALL_PROXY": "http://p:1"}, "http://p:1"),
        (STREAM, {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        (STREAM, {"HTTP_PROXY": "http://p:1"}, None),
        ("ws://stream.example", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("https://127.0.0.1:9", {"HTTPS_PROXY": "http://p:1"}, None),
        ("https://localhost", {"ALL_PROXY": "http://p:1"}, None),
        ("https://[::1]:9", {"ALL_PROXY": "socks5://p:1"}, None),
    ],
)
def test_the_proxy_of_the_environment(
    url: str, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == expected
    assert proxy_of(url, all="http://own:1") == "http://own:1"


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("url", "no_proxy", "exempt"),
    [
        (API, "api.dingtalk.io", True),
        (API, "a.example, dingtalk.io", True),
        (API, ".dingtalk.io", True),
        (API, "*", True),
        (API, "dingtalk.com", False),
        (API, "api.dingtalk.io:8443", False),
        (f"{API}:8443", "api.dingtalk.io:8443", True),
        (STREAM, ".dingtalk.com", True),
        ("https://192.0.2.7", "192.0.2.0/24", True),
        ("https://192.0.2.7:8443", "192.0.2.7", True),
        ("https://192.0.2.7", "198.51.100.0/24", False),
        (API, "192.0.2.0/24", False),
        (API, "", False),
    ],
)
def test_no_proxy_exempts_hosts_from_the_proxy_of_the_environment(
    url: str, no_proxy: str, exempt: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv(variable, no_proxy)
    assert proxy_of(url) == (None if exempt else "http://p:1")
    assert proxy_of(url, https="http://own:1") == "http://own:1", "the connection's own proxy is not exempt"


@pytest.mark.parametrize("value", ["socks5://u:hidden@p:1", "socks5h://p", "ftp://u:hidden@p", "http://a b"])
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_that_cannot_be_used_names_the_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError, match=f"^environment variable {variable}: ") as caught:
        proxy_of(API)
    assert ("SOCKS" in str(caught.value)) == value.startswith("socks")
    assert "hidden" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("no_proxy", "dingtalk.io")
    assert proxy_of(API) is None, "a proxy that is not needed harms nobody"


@pytest.mark.parametrize(
    ("credentials", "user", "password"),
    [
        ("user:word", "user", "word"),
        ("user:w%2Brd%23%2F%40%3A", "user", "w+rd#/@:"),
        ("user:w+rd", "user", "w+rd"),
        ("user:a@b#c/d?e", "user", "a@b#c/d?e"),
        ("user:p%C3%A4ss", "user", "päss"),
        ("user:päss会议", "user", "päss会议"),
        ("us%40er:word", "us@er", "word"),
        ("user:100%", "user", "100%"),
        ("user", "user", ""),
        ("user:", "user", ""),
        (":word", "", "word"),
    ],
)
def test_credentials_of_a_proxy_are_decoded_and_masked_in_every_form(
    credentials: str, user: str, password: str
) -> None:
    settings = Settings(conn_id="c", base_url=API, proxies={"https": f"http://{credentials}@p:1"})
    proxy = settings.proxy_for(API)
    assert proxy is not None
    assert (proxy.url, proxy.username, proxy.password) == ("http://p:1", user, password)
    sent = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert proxy.auth is not None
    assert proxy.auth.encode() == f"Basic {sent}"
    written = credentials.partition(":")[2]
    assert set(proxy.secrets) >= ({written, password, sent} if password else set())
    assert set(settings.secrets) == set(proxy.secrets)
    assert all(proxy.secrets), "an empty secret would mask everything"
    assert "word" not in repr(settings) + repr(proxy)


def test_the_password_of_the_environments_proxy_is_masked_like_the_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass%2Bword@p:1")
    assert {"pass+word", "pass%2Bword"} <= set(Settings(conn_id="c", base_url=API).secrets)


def test_a_proxy_without_credentials_has_none() -> None:
    proxy = Settings(conn_id="c", base_url=API, proxies={"all": "p:1"}).proxy_for(API)
    assert proxy is not None
    assert (proxy.auth, proxy.secrets) == (None, ())


# Through a real proxy

PASSWORD = "w+rd#of-the-pröxy"
WRITTEN = "w%2Brd%23of-the-pr%C3%B6xy"
SENT = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
FORMS = (PASSWORD, WRITTEN, SENT, "w%2Brd", "w+rd", "of-the-pr", json.dumps(PASSWORD)[1:-1])


class ForwardProxy:
    """A proxy that asks for credentials, and forwards every request to one port of this machine.

    :param raw_server: starts the server.
    :param port: where to.
    """

    def __init__(self, raw_server: Callable[..., RawServer], port: int) -> None:
        self.port = port
        self.statuses: list[int] = []
        """What it answers one request after another, before it forwards: 200 forwards."""
        self.sent = SENT
        self.server = raw_server(self._serve)
        self.url = f"http://user:{WRITTEN}@127.0.0.1:{self.server.port}"

    @property
    def targets(self) -> list[str]:
        """The method and the target of each request."""
        return [head.rpartition(" HTTP/1.1")[0].partition(" HTTP/1.1")[0] for head in self.server.requests]

    def _serve(self, server: RawServer, connection: socket.socket, file: Any) -> None:
        head = b"".join(iter(file.readline, b"\r\n")).decode()
        if not head:
            return
        length = re.search(r"(?im)^content-length: (\d+)", head)
        body = file.read(int(length[1]) if length else 0)
        server.requests.append(head)
        given = re.search(r"(?im)^proxy-authorization: Basic (\S+)\r$", head)
        status = self.statuses.pop(0) if self.statuses else 200
        if given is None or given[1] != self.sent:
            status = 407
        if status != 200:
            # As badly behaved as a proxy can be: it quotes what it was sent, the credentials included.
            page = f"<html><title>{status} by the proxy: {head} {PASSWORD} {WRITTEN}</title></html>".encode()
            reason = f"Refused user:{PASSWORD} {SENT}".encode()
            fields = b"Content-Type: text/html\r\nConnection: close\r\nContent-Length: %d" % len(page)
            connection.sendall(b"HTTP/1.1 %d %s\r\n%s\r\n\r\n%s" % (status, reason, fields, page))
            return
        with socket.create_connection(("127.0.0.1", self.port)) as inner:
            if head.startswith("CONNECT "):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                inner.sendall(self._forwarded(head) + body)
            back = threading.Thread(target=_relay, args=(inner, connection), daemon=True)
            back.start()
            _relay(connection, inner)
            back.join(60)

    def _forwarded(self, head: str) -> bytes:
        """Return a request as the server behind gets it: without the host, and nothing of the credentials."""
        head = re.sub(r"^(\S+) (http|ws)://[^/]+", r"\1 ", head)
        head = re.sub(r"(?im)^proxy-authorization: .*\r\n", "", head)
        return (head if "Upgrade:" in head else f"{head}Connection: close\r\n").encode() + b"\r\n"


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=["https", "http", "environment"])
def through(
    request: pytest.FixtureRequest,
    raw_server: Any,
    certificates: Certificates,
    conn: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[ForwardProxy, Sandbox]:
    """Return a proxy that the default connection leads through, and the sandbox behind it.

    Over https through the connection's proxy and through the environment's, and over plain http.
    """
    if request.param == "http":
        sandbox: Sandbox = request.getfixturevalue("sandbox")
        proxy = ForwardProxy(raw_server, sandbox.port)
        conn(extra={"proxies": {"http": proxy.url}})
        return proxy, sandbox
    sandbox = request.getfixturevalue("tls_sandbox")
    proxy = ForwardProxy(raw_server, sandbox.port)
    fields = sandbox.connection(extra={"verify": certificates.authority, "proxies": {"https": proxy.url}})
    if request.param == "environment":
        # No proxy of the environment leads to this machine, and no certificate is for another.
        fields |= {"host": "https://dingtalk.invalid", "extra": {"verify": False}}
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(fields))
    return proxy, sandbox


def check_hidden(caplog: pytest.LogCaptureFixture, error: DingTalkError | None = None) -> None:
    """Check that no form of the password is in the log, nor in the error."""
    shown = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    if error is not None:
        shown += "".join(traceback.format_exception(error)) + f"{error} {vars(error)} {error.as_dict()}"
    for form in FORMS:
        assert form not in shown


@pytest.mark.filterwarnings("ignore::Warning")
@SYNC_TOO
def test_a_call_goes_through_a_proxy_with_credentials(
    face: Face, through: tuple[ForwardProxy, Sandbox], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy, sandbox = through
    assert face.do("lock_conference", "sandbox-open")["success"]
    assert face.do("test_connection")[0]
    assert len(sandbox.calls_of("lock")) == 1
    assert proxy.targets
    for target in proxy.targets:
        assert target.startswith(("CONNECT ", f"POST {sandbox.url}/"))
    for call in sandbox.calls:
        assert not [name for name, _ in call.headers if "proxy" in name.lower() or name == "Authorization"]
    check_hidden(caplog)


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("status", [407, 502])
def test_a_proxy_that_refuses_is_an_error_without_its_password(
    face: Face, through: tuple[ForwardProxy, Sandbox], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy, sandbox = through
    proxy.statuses = [status] * 9
    with pytest.raises(DingTalkError) as caught:
        face.do("lock_conference", "sandbox-open", hook=face.hook(max_attempts=1))
    error = caught.value
    tunnelled = proxy.targets[0].startswith("CONNECT ")
    assert str(status) in str(error)
    assert isinstance(error, ConnectionLostError if tunnelled else DingTalkError)
    assert isinstance(error, TransientError) or status == 407
    assert sandbox.calls == []
    check_hidden(caplog, error)


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_proxy_that_refuses_the_password_is_an_error_without_it(
    face: Face, through: tuple[ForwardProxy, Sandbox], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy, sandbox = through
    proxy.sent = "another"
    said, message = face.do("test_connection", hook=face.hook(max_attempts=1))
    assert (said, sandbox.calls) == (False, [])
    assert "407" in message
    assert not [form for form in FORMS if form in message]
    check_hidden(caplog)


def test_a_socks_proxy_of_the_connection_is_refused_when_it_is_read(
    face: Face, sandbox: Sandbox, conn: Callable[..., None]
) -> None:
    conn(extra={"proxies": {"all": f"socks5://user:{WRITTEN}@127.0.0.1:1"}})
    with pytest.raises(InvalidConnectionError, match=r"'proxies' .*SOCKS proxy \(socks5\)") as caught:
        face.do("lock_conference", "sandbox-open")
    assert WRITTEN not in str(caught.value)
    assert sandbox.calls == []


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_socks_proxy_of_the_environment_is_refused_before_a_call(
    face: Face, variable: str, monkeypatch: pytest.MonkeyPatch, raw_server: Any
) -> None:
    server = raw_server(b"")
    fields = {"conn_type": "dingtalk", "login": "id", "password": "the-secret", "host": "dingtalk.invalid"}
    monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(fields))
    monkeypatch.setenv(variable, f"socks5h://user:{WRITTEN}@127.0.0.1:{server.port}")
    with pytest.raises(InvalidInputError, match=rf"^environment variable {variable}: .*SOCKS") as caught:
        face.do("lock_conference", "sandbox-open")
    assert WRITTEN not in str(caught.value)
    assert server.connections == 0


# Event streams


def watch(until: Callable[[], object], seconds: float = 60) -> None:
    """Let a trigger watch the events of the default connection until something holds."""
    from airflow_provider_dingconf.client.event_stream import StreamOptions
    from airflow_provider_dingconf.triggers import ConferenceEventTrigger

    class Impatient(ConferenceEventTrigger):
        stream_options = StreamOptions(join=(0.0, 0.0))

    async def steps() -> None:
        async def run() -> None:
            async for _ in trigger.run():
                pass

        trigger, end = Impatient(), time.monotonic() + seconds
        task = asyncio.ensure_future(run())
        while not until():
            assert time.monotonic() < end, "it did not come"
            assert not task.done(), task.result()
            await asyncio.sleep(0.02)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await trigger.cleanup()

    asyncio.run(steps())


@pytest.mark.parametrize("through", ["https", "http"], indirect=True)
def test_an_event_stream_goes_through_the_proxy(
    through: tuple[ForwardProxy, Sandbox], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("airflow.sdk", reason="events are for Airflow 3")
    caplog.set_level(logging.DEBUG)
    proxy, sandbox = through
    watch(lambda: sandbox.streams)
    assert len(proxy.targets) >= 2
    address = f"127.0.0.1:{sandbox.port}"
    assert proxy.targets[-1].startswith(
        (f"CONNECT {address}", f"GET ws://{address}/", f"GET http://{address}/")
    )
    check_hidden(caplog)


@pytest.mark.parametrize("status", [407, 502])
@pytest.mark.parametrize("through", ["https", "http"], indirect=True)
def test_a_proxy_that_refuses_an_event_stream_is_logged_without_its_password(
    through: tuple[ForwardProxy, Sandbox], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("airflow.sdk", reason="events are for Airflow 3")
    caplog.set_level(logging.DEBUG)
    proxy, sandbox = through
    proxy.statuses = [200, *[status] * 99]  # the call for the stream's address succeeds
    watch(lambda: f"HTTP {status}" in caplog.text)
    assert sandbox.streams == 0
    check_hidden(caplog)

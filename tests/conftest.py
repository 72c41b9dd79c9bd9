"""What every test gets: another Airflow home, a clean environment, and a DingTalk to talk to."""

from __future__ import annotations

import asyncio
import atexit
import datetime
import functools
import inspect
import ipaddress
import logging
import os
import re
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

# `DAG.test()` of Airflow 3.0 goes on logging to the output of a test that has ended; Python would report that in others.
logging.raiseExceptions = False

# Before anything imports Airflow, which reads these once.
AIRFLOW_HOME = tempfile.mkdtemp(prefix="airflow-home-")
atexit.register(shutil.rmtree, AIRFLOW_HOME, ignore_errors=True)
os.environ.update(
    {
        "AIRFLOW_HOME": AIRFLOW_HOME,
        "AIRFLOW__CORE__DAGS_FOLDER": f"{AIRFLOW_HOME}/dags",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
)

# The files that share access tokens lie in the temporary directory.
tempfile.tempdir = os.environ["TMPDIR"] = AIRFLOW_HOME

CONN_VARIABLE = "AIRFLOW_CONN_DINGTALK_DEFAULT"
PATIENCE = 120.0
"""Seconds that a test may take that is a coroutine."""
_NOT_FOR_TESTS = ("AIRFLOW_CONN_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_", "NETRC")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop that ends with the test."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), PATIENCE))
    return True


def pytest_xdist_auto_num_workers() -> int:
    """Run two processes a core: tests wait for a server, a retry or a process about as long as they work."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave nothing of the machine, nor of the test before: no proxy, no connection, no access token."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(_NOT_FOR_TESTS):
            monkeypatch.delenv(name)
    _forget_tokens()
    _forget_masks()
    yield
    _forget_tokens()
    _let_tasks_log()


def _let_tasks_log() -> None:
    """Undo what a run, and a migration, of Airflow 2 leaves behind: logs that go where standard output was."""
    if "airflow" not in sys.modules:
        return
    from airflow.providers.common.compat.sdk import AIRFLOW_V_3_0_PLUS

    loggers = [logging.getLogger(), logging.getLogger("airflow.task")]
    stale = any(type(handler) is logging.StreamHandler for each in loggers for handler in each.handlers)
    if stale and not AIRFLOW_V_3_0_PLUS:
        from airflow.logging_config import configure_logging

        configure_logging()


def _forget_masks() -> None:
    """Let Airflow mask no secret of the tests before: at each new one, it compiles an expression of them all."""
    for package in (
        "_shared.secrets_masker",
        "sdk._shared.secrets_masker",
        "sdk.execution_time",
        "utils.log",
    ):
        module = vars(sys.modules.get(f"airflow.{package}.secrets_masker", object))
        if "_secrets_masker" in module:
            masker = module["_secrets_masker"]()
            masker.patterns, masker.replacer = set(), None


def _forget_tokens() -> None:
    """Forget the access tokens and bans of this process, and the files that share them."""
    from airflow_provider_dingconf.client import token_cache

    token_cache.forget()
    shutil.rmtree(token_cache.default_directory(), ignore_errors=True)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Return a running sandbox."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def conn(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Point the default connection to the sandbox; call it for another kind, or other fields."""

    def point(kind: Any = "internal", **overrides: Any) -> None:
        # The sandbox has no rate limit: tests of many meetings need not keep to DingTalk's.
        overrides["extra"] = {"calls_per_second": 1000, **(overrides.get("extra") or {})}
        monkeypatch.setenv(CONN_VARIABLE, sandbox.connection_json(kind, **overrides))

    point()
    return point


class Face:
    """The hook as its users see it, waiting or awaiting: each method stands for itself and for its twin.

    :param awaited: whether the async twin is called.
    """

    def __init__(self, *, awaited: bool) -> None:
        self.awaited = awaited
        self._hooks: list[DingTalkConferenceHook] = []

    def hook(self, **options: Any) -> DingTalkConferenceHook:
        """Return a new hook, whose connections are closed when the test ends."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        self._hooks.append(DingTalkConferenceHook(**options))
        return self._hooks[-1]

    def do(self, method: str, *args: Any, hook: DingTalkConferenceHook | None = None, **options: Any) -> Any:
        """Call one method of a hook and return what it returns."""
        hook = hook or self.hook()
        if self.awaited:
            return asyncio.run(getattr(hook, f"a{method}")(*args, **options))
        return getattr(hook, method)(*args, **options)

    def lock_each(
        self,
        meetings: Iterable[str],
        hook: DingTalkConferenceHook,
        after: Callable[[], object] = lambda: None,
    ) -> list[Any]:
        """Lock meetings over connections that are kept between the calls; return each result or error.

        :param after: is called after each.
        """
        from airflow_provider_dingconf.dingtalk.errors import DingTalkError

        results: list[Any] = []

        async def lock() -> None:
            async with hook:
                for meeting in meetings:
                    try:
                        results.append(await hook.alock_conference(meeting))
                    except DingTalkError as error:
                        results.append(error)
                    after()

        asyncio.run(lock())
        return results

    def inside(
        self,
        block: Callable[[], object],
        *args: Any,
        hook: DingTalkConferenceHook | None = None,
        **named: Any,
    ) -> None:
        """Run a block while a meeting is locked."""
        hook = hook or self.hook()

        async def awaited() -> None:
            async with hook.alocked(*args, **named) as result:
                assert result["success"]
                block()

        if self.awaited:
            asyncio.run(awaited())
            return
        with hook.locked(*args, **named) as result:
            assert result["success"]
            block()

    def close(self) -> None:
        """Close the connections of all hooks."""
        for hook in self._hooks:
            hook.close()


@pytest.fixture
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Return the hook's async face, or the one that a test asks for by its parameter, ``sync`` or ``async``.

    Both run the same coroutine: what the network does to one it does to the other.
    """
    made = Face(awaited=getattr(request, "param", "async") == "async")
    yield made
    made.close()


class RawServer:
    """A server below HTTP, which records what a client does.

    :param serve: is given each connection, and a file to read from it.
    """

    def __init__(self, serve: Callable[[socket.socket, Any], object]) -> None:
        self.connections = 0
        self.requests: list[str] = []
        """The first line and the headers of each request that :meth:`read` has read."""
        self._serve = serve
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._start(self._accept)

    def read(self, file: Any) -> bytes | None:
        """Read one request, keep its head, and return its body; None if the client has hung up."""
        if not file.peek(1):
            return None
        head = b"".join(iter(file.readline, b"\r\n")).decode()
        self.requests.append(head)
        length = re.search(r"(?im)^content-length: (\d+)", head)
        return bytes(file.read(int(length[1]) if length else 0))

    def wait_until_hung_up(self) -> None:
        """Wait until the clients have closed all their connections."""
        for thread in self._threads[1:]:
            thread.join(60)
            assert not thread.is_alive(), "a connection was left open"

    def _start(self, target: Callable[..., object], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                self._start(self._one, connection)

    def _one(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file, suppress(OSError):
            self._serve(connection, file)

    def close(self) -> None:
        """Stop, and hang up."""
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def raw_server() -> Iterator[Callable[..., RawServer]]:
    """Return what starts a raw server: from the response to each request, or from a function."""
    with ExitStack() as servers:

        def start(
            response: bytes | Callable[[RawServer, socket.socket, Any], object], *, hangs_up: bool = False
        ) -> RawServer:
            def serve(connection: socket.socket, file: Any) -> None:
                if callable(response):
                    response(server, connection, file)
                    return
                while server.read(file) is not None:
                    connection.sendall(response)
                    if hangs_up:
                        return

            server = RawServer(serve)
            servers.callback(server.close)
            return server

        yield start


class Certificates(NamedTuple):
    """Files of an authority, and of a server and a client that it knows."""

    authority: str
    server: tuple[str, str]
    client: tuple[str, str]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return the files of an authority."""
    return make_certificates(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def tls_context(certificates: Certificates) -> ssl.SSLContext:
    """Return what serves https on this machine, to clients that trust the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    return context


@pytest.fixture
def tls_sandbox(tls_context: ssl.SSLContext) -> Iterator[Sandbox]:
    """Return a sandbox that is called over https."""
    with Sandbox(ssl_context=tls_context) as sandbox:
        yield sandbox


def make_certificates(directory: Path) -> Certificates:
    """Make an authority, a server of this machine and a client, and write their files into a directory."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now, hour = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(hours=1)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    of_authority = authority_key.public_key()
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    def write(name: str, content: bytes) -> str:
        (directory / name).write_bytes(content)
        return str(directory / name)

    def certified(name: str, key: Any, *extensions: tuple[Any, bool]) -> tuple[str, str]:
        made = x509.CertificateBuilder(
            issuer_name=authority,
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - hour,
            not_valid_after=now + hour,
        )
        for extension, critical in (
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(of_authority), False),
            *extensions,
        ):
            made = made.add_extension(extension, critical=critical)
        pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
        signed = made.sign(authority_key, hashes.SHA256()).public_bytes(pem)
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password)
        return write(f"{name}.pem", signed), write(f"{name}.key", private)

    usage = inspect.signature(x509.KeyUsage).parameters
    signs = x509.KeyUsage(**{name: name in {"key_cert_sign", "crl_sign"} for name in usage})
    is_authority = x509.BasicConstraints(ca=True, path_length=None)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    name = x509.SubjectAlternativeName([x509.DNSName("client.example")])
    return Certificates(
        certified("authority", authority_key, (is_authority, True), (signs, True))[0],
        certified("server", ec.generate_private_key(ec.SECP256R1()), (address, False)),
        certified("client", ec.generate_private_key(ec.SECP256R1()), (name, False)),
    )


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Create Airflow's database, for tests that run tasks."""
    from airflow.providers.common.compat.sdk import DAG
    from airflow.utils.db import initdb

    DAG.test = _untraced(DAG.test)
    _untraced(initdb)()
    _keep_the_execution_api()
    _shorten_the_pauses()


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that coverage does not trace: it would trace Airflow, and take half as long again."""

    @functools.wraps(function)
    def untraced(*args: Any, **options: Any) -> Any:
        trace, of_threads = sys.gettrace(), threading.gettrace()
        if type(trace).__module__.startswith("coverage"):
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        try:
            return function(*args, **options)
        finally:
            sys.settrace(trace)
            threading.settrace(of_threads)

    return untraced


def _keep_the_execution_api() -> None:
    """Let ``DAG.test()`` make its server once and not for each task, as Airflow does itself since 3.3."""
    with suppress(ImportError):  # Airflow 2
        from airflow.sdk.execution_time import supervisor

        supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)


def _shorten_the_pauses() -> None:
    """Let ``DAG.test()`` look soon, and not in a second, after a round in which no task could start."""
    sleep = time.sleep

    def sleep_less(seconds: float) -> None:
        caller = sys._getframe(1).f_globals["__name__"]
        sleep(0.05 if caller.endswith((".definitions.dag", ".models.dag")) else seconds)

    time.sleep = sleep_less

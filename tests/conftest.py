"""What every test gets: an Airflow home of its own, a clean environment, and a DingTalk to talk to."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

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
_NOT_FOR_TESTS = ("AIRFLOW_CONN_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_", "NETRC")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave nothing of the machine, nor of the test before: no proxy, no connection, no access token."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(_NOT_FOR_TESTS):
            monkeypatch.delenv(name)
    _forget_tokens()
    yield
    _forget_tokens()


def _forget_tokens() -> None:
    """Forget the access tokens and bans of this process, and the files that share them."""
    from airflow_provider_dingconf import token_store

    token_store.forget()
    shutil.rmtree(token_store.default_directory(), ignore_errors=True)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Return a running sandbox."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def conn(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Point the default connection to the sandbox; call it for another kind, or other fields."""

    def point(kind: Any = "internal", **overrides: Any) -> None:
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
        return self.run(hook or self.hook(), lambda call: call(method, *args, **options))

    def run(self, hook: DingTalkConferenceHook, steps: Callable[..., Any]) -> Any:
        """Let ``steps`` make calls of one hook, over connections that are kept between them.

        :param steps: a function of ``call``, which takes a method's name and arguments. Where it is a
            generator, it yields what ``call`` gives, and is sent the result; else it returns what one
            ``call`` gives.
        """
        return asyncio.run(self._awaited(hook, steps)) if self.awaited else self._waited(hook, steps)

    def _waited(self, hook: DingTalkConferenceHook, steps: Callable[..., Any]) -> Any:
        made = steps(lambda method, *args, **options: lambda: getattr(hook, method)(*args, **options))
        if not inspect.isgenerator(made):
            return made()
        result = None
        while True:
            try:
                want = made.send(result)
            except StopIteration as end:
                return end.value
            result = want()

    async def _awaited(self, hook: DingTalkConferenceHook, steps: Callable[..., Any]) -> Any:
        made = steps(lambda method, *args, **options: lambda: getattr(hook, "a" + method)(*args, **options))
        if not inspect.isgenerator(made):
            return await made()
        async with hook:
            result = None
            while True:
                try:
                    want = made.send(result)
                except StopIteration as end:
                    return end.value
                result = await want()

    def close(self) -> None:
        """Close the connections of all hooks."""
        for hook in self._hooks:
            hook.close()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Return the hook's face; a test that asks for it runs twice, sync and async."""
    made = Face(awaited=request.param)
    yield made
    made.close()


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Create Airflow's database, for tests that run tasks."""
    from airflow.utils.db import initdb

    initdb()

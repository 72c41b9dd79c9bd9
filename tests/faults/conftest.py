"""The layer that breaks connections, and a look at what a call leaves open."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

from .fault_proxy import FaultProxy

if TYPE_CHECKING:
    from conftest import Certificates


@pytest.fixture(scope="package")
def behind() -> Iterator[Sandbox]:
    """Return the sandbox behind the layer."""
    with Sandbox() as running:
        yield running


@pytest.fixture(scope="package")
def layer(behind: Sandbox, certificates: Certificates) -> Iterator[FaultProxy]:
    """Return the layer; a client that does not know its authority refuses its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    with FaultProxy(behind, context) as running:
        yield running


@pytest.fixture
def connect(behind: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes an Airflow connection to an address: of this id, for this kind of app."""

    def make(url: str, conn_id: str = "dingtalk_default", kind: Any = "internal", **extra: Any) -> None:
        fields = behind.connection(kind, host=url)
        fields["extra"] |= extra
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return make


def descriptors() -> list[str]:
    """Return what the open file descriptors of this process lead to."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names alone: the files vanish
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))  # noqa: PTH115
    return sorted(found)


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Check that no thread, socket or file is open after the block that was not before."""
    threads, files = set(threading.enumerate()), descriptors()
    yield
    # The other end of a connection closes a little later.
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        new = set(threading.enumerate()) - threads
        if not new and len(descriptors()) <= len(files):
            return
        time.sleep(0.005)
    left = list(descriptors())
    for known in files:
        if known in left:
            left.remove(known)
    raise AssertionError(f"left open: {new} {left}")

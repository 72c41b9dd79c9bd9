"""The layer that breaks connections, and what a call leaves open."""

from __future__ import annotations

import itertools
import json
import os
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

from .fault_proxy import Fault, FaultProxy

pytest.register_assert_rewrite(f"{__package__}.rows")
from .rows import PATIENCE, ROWS, Case  # noqa: E402 - after the line that says how it is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that share a long run: pytest-xdist deals out the first ones in large pieces."""
    items.sort(key=lambda item: item.path.name not in {"test_soak.py", "test_tasks.py"})


@pytest.fixture(scope="package")
def behind() -> Iterator[Sandbox]:
    """Return the sandbox behind the layer."""
    with Sandbox() as running:
        yield running


@pytest.fixture(scope="package")
def layer(behind: Sandbox, tls_context: ssl.SSLContext) -> Iterator[FaultProxy]:
    """Return the layer; a client that does not know its authority refuses its certificate."""
    with FaultProxy(behind, tls_context) as running:
        yield running


@pytest.fixture
def connect(behind: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes an Airflow connection to an address: of this id, for this kind of app."""

    def make(url: str, conn_id: str = "dingtalk_default", kind: Any = "internal", **extra: Any) -> None:
        fields = behind.connection(kind, host=url)
        fields["extra"] |= extra
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return make


@pytest.fixture
def case_of(layer: FaultProxy, behind: Sandbox, connect: Callable[..., None]) -> Callable[..., Case]:
    """Return what gives a row an address and a meeting."""

    def make(
        name: str, call: str, times: int | None = None, fault: Fault | None = None, **changes: Any
    ) -> Case:
        row = replace(ROWS[name], **changes)
        fault = fault or row.fault
        where = "connection" if fault and not fault.reads else call
        faults = itertools.repeat(fault) if times is None else [fault] * times
        route = layer.route({where: faults} if fault else {})
        urls = {
            "http": route.url,
            "https": route.https_url,
            "no TLS": route.url.replace("http:", "https:"),
            "refused": layer.refused_url,
        }
        number = route.url.rpartition(":")[0].rpartition("/")[2].replace(".", "_")
        case = Case(row, call, route, f"fault_{number}", behind.create_conference(name))
        # If the lock alone is to go wrong, its token costs no call.
        kind = "static_token" if call == "lock" and not row.fresh_token else "internal"
        connect(urls[row.scheme], case.conn_id, kind, timeout=[row.connect_timeout, row.read_timeout])
        return case

    return make


def descriptors() -> Counter[str]:
    """Return what the open file descriptors of this process lead to."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names alone: the files vanish
        with suppress(FileNotFoundError):
            found[os.readlink(f"/proc/self/fd/{name}")] += 1  # noqa: PTH115
    return found


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Check that no thread, socket or file is open after the block that was not before."""
    threads, files = set(threading.enumerate()), descriptors()
    yield
    # The other end of a connection closes a little later.
    give_up = time.monotonic() + PATIENCE
    while (new := set(threading.enumerate()) - threads) or descriptors().total() > files.total():
        assert time.monotonic() < give_up, f"left open: {new} {descriptors() - files}"
        time.sleep(0.005)

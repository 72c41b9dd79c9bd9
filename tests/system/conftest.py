"""What all real deployments have in common: they end when the tests do, in whichever way those end.

Tests that are marked as ``slow`` take minutes, and are not among those of CI: ``make test-system ONLY=--slow``
runs them, too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

_PR_SET_PDEATHSIG = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_configure(config: pytest.Config) -> None:
    """Let the end of a run, even by SIGKILL, end its processes by SIGTERM: xdist would leave theirs behind."""
    config.addinivalue_line("markers", "slow: takes minutes")
    if "PYTEST_XDIST_WORKER" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@pytest.fixture(scope="session", autouse=True)
def terminated_as_interrupted() -> Iterator[None]:
    """Let a SIGTERM end the tests as Ctrl+C does: with all that they have started."""

    def interrupt(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # another one would interrupt the clean-up
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def dingtalk() -> Iterator[Sandbox]:
    """Return the DingTalk of a module, which soon delivers an event again that was not acknowledged."""
    with Sandbox(redelivery=10) as running:
        yield running

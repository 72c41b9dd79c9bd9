"""What ``make bench`` says of shared tokens and of faults: the rows of its table, as data.

Each side of a ratio is measured in this run. By itself, the file prints its own rows.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

sys.path.append(str(Path(__file__).parents[1]))

from demo import ask, sandbox
from faults.soak import Plan, soaked

Row = tuple[str, float, float, str, float | None]
"""What is compared, one side, the other, their unit, and the goal of the ratio."""

PROCESSES = 200
AT_ONCE = 50
READ_ROUNDS = 500
FAULT_ROUNDS = 30
SOAK_CALLS, SOAK_WORKERS = 2_000, 40
MEETING = "sandbox-open"
TOKEN_CALL = "/v1.0/oauth2/accessToken"


def rows() -> Iterator[Row]:
    """Measure, and yield the rows."""
    with (
        tempfile.TemporaryDirectory(prefix="dingconf-bench-") as home,
        sandbox(Path(home, "sandbox.log"), "--quiet") as url,
        _connected(home, url) as connection,
    ):
        yield f"token calls / needed, {PROCESSES} task processes", *token_calls(url), "calls", 1.0
        read, fetched = read_and_fetched(connection)
        yield "token: read from the shared file / a token call", read, fetched, "ms", 0.25
        for what, fault in FAULTS.items():
            yield f"lock: {what} / no fault", *with_and_without(url, fault), "ms", None
        yield f"soak: calls / fewest possible, {SOAK_CALLS} asked for", *soak_calls(home), "calls", None


@contextmanager
def _connected(home: str, url: str) -> Iterator[Mapping[str, str]]:
    """Have the environment of a task whose connection leads to a sandbox, for the length of a block."""
    before, directory = dict(os.environ), tempfile.tempdir
    connection = {
        "conn_type": "dingtalk",
        "host": url,
        "login": "dingsandboxapp",
        "password": "sandbox-app-secret",
    }
    os.environ.update({"AIRFLOW_CONN_DINGTALK_DEFAULT": json.dumps(connection), "TMPDIR": home})
    tempfile.tempdir = home
    try:
        yield connection
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = directory


def lock(_: object = None) -> None:
    """Lock a meeting in a hook of its own, as a task does."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook = DingTalkConferenceHook()
    hook.lock_conference(MEETING)
    hook.close()


def token_calls(url: str) -> tuple[float, float]:
    """Return how many tokens processes fetched that had none at first, and how many they needed: one."""
    import airflow_provider_dingconf.hooks  # noqa: F401 - once, and not in each process

    with multiprocessing.get_context("fork").Pool(AT_ONCE, maxtasksperchild=1) as pool:
        pool.map(lock, range(PROCESSES), chunksize=1)
    made = [call["call"] for call in ask(url, "calls")]
    if made.count("lock") != PROCESSES:
        raise RuntimeError(f"{made.count('lock')} locks for {PROCESSES} processes")
    return made.count("token"), 1


def read_and_fetched(connection: Mapping[str, str]) -> tuple[float, float]:
    """Return how long a process takes to read the shared token, and a token call over a warm connection."""
    from airflow_provider_dingconf.client import token_cache
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook = DingTalkConferenceHook()
    credentials = {"appKey": connection["login"], "appSecret": connection["password"]}

    def read() -> None:
        token_cache.forget()
        if token_cache.token_cache_of(hook.settings).get(None, time.time()) is None:
            raise RuntimeError("there is no shared token")

    found = _in_turn([read, lambda: hook.call("POST", TOKEN_CALL, json=credentials)], READ_ROUNDS)
    hook.close()
    return found[0], found[1]


FAULTS: Mapping[str, Mapping[str, Any]] = {
    "a connection that breaks once": {"call": "lock", "drop": True, "times": 1},
    "a gateway that fails once": {"call": "lock", "code": "gateway", "times": 1},
    "a token that is refused once": {"call": "lock", "code": "InvalidAuthentication", "times": 1},
}
"""Faults of the sandbox's that heal at once."""


def with_and_without(url: str, fault: Mapping[str, Any]) -> tuple[float, float]:
    """Return how long a lock takes that meets a fault, and one that meets none."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook = DingTalkConferenceHook()
    hook.lock_conference(MEETING)

    def hit() -> float:
        _post(f"{url}/sandbox/faults", fault)
        return _milliseconds(lambda: hook.lock_conference(MEETING))

    found = [(hit(), _milliseconds(lambda: hook.lock_conference(MEETING))) for _ in range(FAULT_ROUNDS)]
    hook.close()
    return median(one for one, _ in found), median(other for _, other in found)


def soak_calls(home: str) -> tuple[float, float]:
    """Return how many calls a soak made, and how many it had to."""
    with soaked(Plan(1, SOAK_CALLS, SOAK_WORKERS), Path(home)) as done:
        return done.route.count(), done.fewest_calls


def _in_turn(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    measured = [[_milliseconds(side) for side in sides] for _ in range(rounds + 1)]
    return [median(times) for times in zip(*measured[1:], strict=True)]


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def _post(url: str, body: object) -> None:
    asked = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - the sandbox's
    build_opener(ProxyHandler({})).open(asked, timeout=10).close()


if __name__ == "__main__":
    from bench import log_as_a_task_does, row

    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="dingconf-bench-"))
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    log_as_a_task_does(Path(os.environ["AIRFLOW_HOME"], "task.log"))
    for found in rows():
        row(*found)

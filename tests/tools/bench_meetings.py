"""What many meetings cost, and waiting for them: rows of ``make bench``.

It runs alone, too, for it takes some minutes: the official SDK waits for one answer after the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from bench import log_as_a_task_does, row
from demo import ask, environment, sandbox

MEETINGS = 1000
MANY = 10_000
ANSWER_SECONDS = 0.05
CONCURRENCY = 50
CALLS_PER_SECOND = 1e6  # no rate limit
INTERVAL = 15.0
"""Seconds: long enough for all triggers to have begun before the first round."""

MEMORY = """
import logging, re, sys
from types import SimpleNamespace
logging.disable(logging.CRITICAL)
from airflow_provider_dingconf.operators import LockConferenceOperator
ids = [f"m-{number}" for number in range(int(sys.argv[1]))]
lock = LockConferenceOperator(task_id="lock", conference_id=ids, concurrency=50, calls_per_second=1e6)
names = {"dag_id": "dag", "run_id": "run", "task_id": "lock", "map_index": -1}
ti = SimpleNamespace(**names, try_number=1, max_tries=3, xcom_push=lambda **_: None)
results = lock.execute({"ti": ti})
assert len(results) == len(ids) and all(one["success"] for one in results)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


class Row(NamedTuple):
    """What is compared, both sides, the unit, and the most that their ratio may be."""

    what: str
    one: float
    other: float
    unit: str
    goal: float | None = None


def tell(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> None:
    """Tell the sandbox something, over its control interface."""
    request = Request(f"{url}/sandbox/{path}", json.dumps(body or {}).encode(), method=method)  # noqa: S310
    build_opener(ProxyHandler({})).open(request, timeout=10).close()


def make_meetings(url: str, number: int) -> list[str]:
    """Create running meetings, and return their ids."""
    ids = [f"m-{each}" for each in range(number)]
    for conference_id in ids:
        tell(url, "POST", "conferences", {"conference_id": conference_id})
    return ids


def lock_by_sdk(url: str, token: str, ids: list[str]) -> float:
    """Return the seconds in which the official SDK locks all of them."""
    from alibabacloud_dingtalk.conference_1_0 import models
    from alibabacloud_dingtalk.conference_1_0.client import Client
    from alibabacloud_tea_openapi.models import Config
    from alibabacloud_tea_util.models import RuntimeOptions

    client = Client(Config(protocol="http", endpoint=url.removeprefix("http://")))
    headers = models.LockConferenceHeaders(x_acs_dingtalk_access_token=token)
    began = time.perf_counter()
    for conference_id in ids:
        request = models.LockConferenceRequest(action="lock")
        client.lock_conference_with_options(conference_id, request, headers, RuntimeOptions())
    return time.perf_counter() - began


def lock_all(ids: list[str]) -> float:
    """Return the seconds in which the hook locks all of them."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    began = time.perf_counter()
    results = DingTalkConferenceHook().lock_conferences(
        ids, concurrency=CONCURRENCY, calls_per_second=CALLS_PER_SECOND
    )
    took = time.perf_counter() - began
    assert all(one.success for one in results)
    return took


async def wait_one_interval(ids: list[str]) -> float:
    """Let a trigger wait for the end of each meeting, and return the processor's seconds of one round."""
    from airflow_provider_dingconf.triggers import ConferenceTrigger

    async def wait(conference_id: str) -> None:
        trigger = ConferenceTrigger(
            "ended", {"conference_id": conference_id}, poke_interval=INTERVAL, seen="started"
        )
        async for _ in trigger.run():
            pass

    tasks = [asyncio.create_task(wait(conference_id)) for conference_id in ids]
    await asyncio.sleep(INTERVAL / 2)  # all have begun
    began = time.process_time()
    await asyncio.sleep(INTERVAL)
    took = time.process_time() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return took


async def poll_singly(ids: list[str]) -> float:
    """Ask for each meeting by a call of its own, and return the processor's seconds."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    gate = asyncio.Semaphore(20)
    began = time.process_time()
    async with DingTalkConferenceHook() as hook:

        async def ask_for(conference_id: str) -> None:
            async with gate:
                await hook.aget_conference(conference_id)

        await asyncio.gather(*map(ask_for, ids))
    return time.process_time() - began


def peak_memory(number: int) -> float:
    """Return the peak memory, in MiB, of a process that locks so many meetings."""
    command = [sys.executable, "-c", MEMORY, str(number)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def rows() -> Iterator[Row]:
    """Measure, and yield the rows."""
    with (
        tempfile.TemporaryDirectory(prefix="dingconf-bench-") as home,
        sandbox(Path(home, "sandbox.log"), "--quiet") as url,
    ):
        os.environ.update(environment(Path(home), url))
        log_as_a_task_does(Path(home, "task.log"))
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        ids = make_meetings(url, MANY)
        some = ids[:MEETINGS]
        lock_all(some[:50])  # imports, the token

        single = asyncio.run(poll_singly(some))
        tell(url, "DELETE", "calls")
        shared = asyncio.run(wait_one_interval(some))
        polls = len(ask(url, "calls"))
        yield Row(f"calls: one interval of {MEETINGS} waiting tasks / allowed", polls, 12, "calls", 1.0)
        yield Row(f"CPU: that interval / {MEETINGS} single polls", shared, single, "s", 0.2)

        hook = DingTalkConferenceHook()
        app = json.loads(os.environ["AIRFLOW_CONN_DINGTALK_DEFAULT"])
        token = hook.call(
            "POST", "/v1.0/oauth2/accessToken", json={"appKey": app["login"], "appSecret": app["password"]}
        )["accessToken"]
        tell(url, "POST", "faults", {"call": "lock", "delay": ANSWER_SECONDS})
        least = MEETINGS / CONCURRENCY * ANSWER_SECONDS
        tell(url, "DELETE", "calls")
        took = median(lock_all(some) for _ in range(3))
        calls = len(ask(url, "calls"))
        yield Row(
            f"{MEETINGS} meetings, {CONCURRENCY} at a time / the least possible", took, least, "s", 1.20
        )
        yield Row(f"API calls / {MEETINGS} meetings, three times", calls, 3 * MEETINGS, "calls", 1.001)
        by_sdk = lock_by_sdk(url, token, some)
        yield Row(f"{MEETINGS} meetings / the official SDK's loop", took, by_sdk, "s")
        tell(url, "DELETE", "faults")

        few, many = peak_memory(100), peak_memory(MANY)
        yield Row(f"peak memory: {MANY} meetings more than 100 / 10 MiB", many - few, 10, "MiB", 1.0)


if __name__ == "__main__":
    for each in rows():
        row(*each)

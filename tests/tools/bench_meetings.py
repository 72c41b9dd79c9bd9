"""What many meetings cost, and many processes: rows of ``make bench``."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

from bench import lock_in_a_new_hook
from demo import ask
from measuring import Row, calls_of, connected, control, make_meetings, report, seconds

PROCESSES = 200
PROCESSES_AT_ONCE = 50
MEETINGS = 1000
MANY = 10_000
RESPONSE_SECONDS = 0.05
CONCURRENCY = 50
NO_RATE_LIMIT = 1e6
INTERVAL = 15.0
"""Seconds: long enough for all triggers to have begun before the first round."""
CALLS_PER_SECOND = 20
LIMITED = 300
"""Locks: more than a burst that a rate limit overlooks."""

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


def lock_in_a_process(_number: int) -> None:
    """Lock a meeting as a task does."""
    lock_in_a_new_hook()


def token_calls(url: str) -> int:
    """Return how many tokens processes fetched that had none at first."""
    import airflow_provider_dingconf.hooks  # noqa: F401 - once, and not in each process

    with multiprocessing.get_context("fork").Pool(PROCESSES_AT_ONCE, maxtasksperchild=1) as pool:
        pool.map(lock_in_a_process, range(PROCESSES), chunksize=1)
    calls = [call["call"] for call in ask(url, "calls")]
    assert calls.count("lock") == PROCESSES
    return calls.count("token")


def lock_all(ids: list[str], **options: Any) -> None:
    """Lock all of them with one hook."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    assert all(one.success for one in DingTalkConferenceHook().lock_conferences(ids, **options))


async def wait_one_interval(ids: list[str]) -> None:
    """Let a trigger wait for the end of each meeting, for one round of polls."""
    from airflow_provider_dingconf.triggers import ConferenceTrigger

    async def wait(conference_id: str) -> None:
        trigger = ConferenceTrigger(
            "ended", {"conference_id": conference_id}, poke_interval=INTERVAL, seen="started"
        )
        async for _ in trigger.run():
            pass

    tasks = [asyncio.create_task(wait(conference_id)) for conference_id in ids]
    await asyncio.sleep(1.5 * INTERVAL)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def peak_memory(number: int) -> float:
    """Return the peak memory, in MiB, of a process that locks so many meetings."""
    command = [sys.executable, "-c", MEMORY, str(number)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def rows() -> Iterator[Row]:
    """Measure, and yield the rows."""
    with connected() as url:  # first, before this process has a background thread
        yield Row(f"token calls / needed, {PROCESSES} task processes", token_calls(url), 1, "calls", 1.0)

    with connected() as url:
        ids = make_meetings(url, MANY)
        some = ids[:MEETINGS]
        at_most = {"concurrency": CONCURRENCY, "calls_per_second": NO_RATE_LIMIT}
        lock_all(some[:CONCURRENCY], **at_most)  # imports, the token
        control(url, "POST", "faults", call="lock", delay=RESPONSE_SECONDS)
        took = median(seconds(lambda: lock_all(some, **at_most)) for _ in range(3))
        control(url, "DELETE", "faults")
        least = MEETINGS / CONCURRENCY * RESPONSE_SECONDS
        yield Row(
            f"{MEETINGS} meetings, {CONCURRENCY} at a time / the least possible", took, least, "s", 1.20
        )

        few, many = peak_memory(100), peak_memory(MANY)
        yield Row(f"peak memory: {MANY} meetings more than 100 / 10 MiB", many - few, 10, "MiB", 1.0)

        polls = calls_of(url, lambda: asyncio.run(wait_one_interval(some)))
        yield Row(f"calls: one interval of {MEETINGS} waiting tasks / allowed", polls, 12, "calls", 1.0)

    with connected("--calls-per-second", str(CALLS_PER_SECOND)) as url:
        ids = make_meetings(url, LIMITED)
        calls = calls_of(url, lambda: lock_all(ids))
        yield Row(
            f"calls: {LIMITED} locks at {CALLS_PER_SECOND} a second / {LIMITED}",
            calls,
            LIMITED,
            "calls",
            305 / 300,
        )


if __name__ == "__main__":
    report(rows())

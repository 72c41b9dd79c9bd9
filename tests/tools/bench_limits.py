"""What DingTalk's limits cost, and what interruptions leave: rows of ``make bench``.

It runs alone, too.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench import row
from bench_meetings import Row, make_meetings, tell
from demo import ask, environment, sandbox

MEETINGS = 60
SENSORS = 100
ROUNDS = 3
INTERVAL = 5.0
"""Seconds between two polls of a sensor."""
LOCKS = 300
CALLS_PER_SECOND = 20
INTERRUPTIONS = 1000


@contextmanager
def connected(home: Path, *options: str) -> Iterator[str]:
    """Run a sandbox with these options, and let the Airflow connection lead to it."""
    home.mkdir()
    with sandbox(home / "sandbox.log", "--quiet", *options) as url:
        os.environ.update(environment(home, url), TMPDIR=str(home))
        tempfile.tempdir = str(home)
        yield url


def calls(url: str) -> int:
    """Return how many calls the sandbox has received."""
    return len(ask(url, "calls"))


def lock_without_quota(url: str) -> int:
    """Return how many calls a lock of many meetings makes once the quota is used up."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook = DingTalkConferenceHook()
    hook.lock_conference("sandbox-open")
    results = hook.lock_conferences([f"m-{each}" for each in range(MEETINGS)])
    assert not any(result.success for result in results)
    return calls(url) - 2  # the token and the one lock within the quota


async def poll_without_quota(url: str) -> int:
    """Return how many calls the rounds of many waiting sensors make once the quota is used up."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook
    from airflow_provider_dingconf.triggers import ConferenceTrigger

    async def wait(number: int) -> None:
        # RETRY keeps a sensor waiting; by default each would fail in the first round.
        trigger = ConferenceTrigger(
            "ended",
            {"conference_id": f"m-{number}"},
            poke_interval=INTERVAL,
            seen="started",
            on_error={"QuotaExhaustedError": "retry"},
        )
        async for _ in trigger.run():
            pass

    async with DingTalkConferenceHook() as hook:
        await hook.alock_conference("sandbox-open")
    tasks = [asyncio.create_task(wait(number)) for number in range(SENSORS)]
    await asyncio.sleep(INTERVAL * (ROUNDS + 0.5))
    made = calls(url) - 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return made


def lock_at_the_rate_limit(ids: list[str]) -> float:
    """Return the seconds in which a hook locks all meetings, by the defaults."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    began = time.perf_counter()
    assert all(result.success for result in DingTalkConferenceHook().lock_conferences(ids))
    return time.perf_counter() - began


class Interruption(Exception):  # noqa: N818 - what an execution timeout raises
    """Raised by the handler of SIGALRM."""


def interrupt(url: str, send: Callable[[float], threading.Timer | None]) -> tuple[int, int]:
    """Interrupt locks at random moments; return how many raised, and how many of those left a lock.

    :param send: sends this process a signal after so many seconds.
    """
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook, draw = DingTalkConferenceHook(), random.Random(1)  # noqa: S311 - moments, no secrets
    raised = left = 0
    usual = median(_seconds(lambda: hook.lock_conference("m-0")) for _ in range(50))
    tell(url, "DELETE", "calls")
    for number in range(INTERRUPTIONS):
        meeting, timer, result = f"m-{number}", None, None
        try:
            timer = send(draw.uniform(0, 1.2 * usual))
            result = hook.lock_conference(meeting)
            if timer:
                timer.join()
            time.sleep(usual)  # for an alarm that is still to come
        except (Interruption, SystemExit):
            if result is None:  # else the call has returned
                raised += 1
                left += _is_locked(url, meeting)
        if timer:
            timer.join()
    return raised, left


def _is_locked(url: str, meeting: str) -> bool:
    return next(each["locked"] for each in ask(url, "conferences") if each["conference_id"] == meeting)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interruptions(url: str) -> Iterator[Row]:
    """Measure with SIGALRM, as an execution timeout does, and SIGTERM, by which Airflow ends a task."""

    def raise_alarm(*_: object) -> None:
        raise Interruption

    def raise_exit(*_: object) -> None:
        sys.exit(1)

    def alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def terminate(seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        return timer

    signal.signal(signal.SIGALRM, raise_alarm)
    signal.signal(signal.SIGTERM, raise_exit)
    for name, send in {"SIGALRM": alarm, "SIGTERM": terminate}.items():
        raised, left = interrupt(url, send)
        yield Row(
            f"left locked / {INTERRUPTIONS} interruptions by {name} that raised", left, raised, "locks", 0.0
        )


def rows() -> Iterator[Row]:
    """Measure, and yield the rows."""
    with tempfile.TemporaryDirectory(prefix="dingconf-bench-") as home:
        with connected(Path(home, "quota"), "--quota", "2") as url:
            yield Row(
                f"calls: lock {MEETINGS} meetings without quota / allowed",
                lock_without_quota(url),
                20,
                "calls",
                1.0,
            )
        with connected(Path(home, "polls"), "--quota", "2") as url:
            polls = asyncio.run(poll_without_quota(url))
            yield Row(f"calls: {SENSORS} waiting sensors without quota / rounds", polls, ROUNDS, "calls", 1.0)
        with connected(Path(home, "rate"), "--calls-per-second", str(CALLS_PER_SECOND)) as url:
            ids = make_meetings(url, LOCKS)
            took = lock_at_the_rate_limit(ids)
            yield Row(
                f"calls: {LOCKS} locks at {CALLS_PER_SECOND} a second / {LOCKS}",
                calls(url),
                LOCKS,
                "calls",
                305 / 300,
            )
            yield Row("time: the same / the least possible", took, LOCKS / CALLS_PER_SECOND, "s")
        with connected(Path(home, "interruptions")) as url:
            make_meetings(url, INTERRUPTIONS)
            yield from interruptions(url)


if __name__ == "__main__":
    for each in rows():
        row(*each)

"""What interrupted locks leave: rows of ``make bench``."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from types import FrameType

from demo import ask
from measuring import Row, connected, make_meetings, report, seconds

INTERRUPTIONS = 1000


class Interruption(Exception):  # noqa: N818 - it is no error
    """Raised by the handler of SIGALRM, as an execution timeout is."""


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interruption


def terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(1)


def alarm(delay: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, delay)


def terminate_later(delay: float) -> threading.Timer:
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    return timer


def interrupted_locks(url: str, send: Callable[[float], threading.Timer | None]) -> tuple[int, int]:
    """Interrupt locks at random moments; return how many stayed locked, of how many that raised.

    :param send: sends this process a signal after so many seconds.
    """
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook, draw = DingTalkConferenceHook(), random.Random(1)  # noqa: S311 - moments, no secrets
    raised = []
    usual = median(seconds(lambda: hook.lock_conference("m-0")) for _ in range(50))
    for number in range(1, INTERRUPTIONS + 1):
        meeting, timer, result = f"m-{number}", None, None
        try:
            timer = send(draw.uniform(0, 1.2 * usual))
            result = hook.lock_conference(meeting)
            if timer:
                timer.join()
            time.sleep(usual)  # for an alarm that is still to come
        except (Interruption, SystemExit):
            if result is None:  # else the call has returned
                raised.append(meeting)
        if timer:
            timer.join()
    locked = {each["conference_id"] for each in ask(url, "conferences") if each["locked"]}
    return len(locked.intersection(raised)), len(raised)


def rows() -> Iterator[Row]:
    """Measure with SIGALRM, as an execution timeout does, and SIGTERM, by which Airflow ends a task."""
    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGTERM, terminate)
    for name, send in {"SIGALRM": alarm, "SIGTERM": terminate_later}.items():
        with connected() as url:
            make_meetings(url, INTERRUPTIONS + 1)
            left, raised = interrupted_locks(url, send)
            what = f"left locked / {INTERRUPTIONS} interruptions by {name} that raised"
            yield Row(what, left, raised, "locks", 0.0)


if __name__ == "__main__":
    report(rows())

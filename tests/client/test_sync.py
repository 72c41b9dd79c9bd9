"""Waiting for the background event loop: signals reach the thread that waits, and no result is lost to one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from airflow_provider_dingconf.client.sync import run

if TYPE_CHECKING:
    from collections.abc import Iterator

LATE_SECONDS = 2.0

PROGRAM = """
import asyncio, os, signal, sys, threading
from airflow_provider_dingconf.client.sync import run, run_later

class Interrupted(Exception):
    pass

def note(*_):
    os.write(1, b".")
    raise Interrupted

async def tick():
    while True:
        await asyncio.sleep(0.0005)

async def nothing():
    pass

def busy_thread():
    asyncio.run(tick())

run(nothing)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.signal(signal.SIGTERM, note)
if sys.argv[1] == "a block":
    run_later(tick)
    wait = threading.Event().wait
else:
    threading.Thread(target=busy_thread, daemon=True).start()
    wait = lambda: run(tick)
os.write(1, b".")
while True:
    try:
        wait()
    except Interrupted:
        pass
"""


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    program = [sys.executable, "-c", PROGRAM, request.param]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(("process", "pairs"), [("a block", 1_000), ("a call", 150)], indirect=["process"])
def test_a_signal_that_comes_with_another_one_is_handled_in_time(
    process: subprocess.Popen[bytes], pairs: int
) -> None:
    assert process.stdout
    os.read(process.stdout.fileno(), 1)
    for _ in range(pairs):  # in some per cent of the pairs, the kernel gives one signal to another thread
        process.send_signal(signal.SIGALRM)
        process.send_signal(signal.SIGTERM)
        handled, _, _ = select.select([process.stdout], [], [], LATE_SECONDS)
        assert handled
        os.read(process.stdout.fileno(), 1)


def test_a_result_that_comes_at_the_moment_of_an_interruption_is_undone() -> None:
    undone: list[str] = []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    async def work() -> str:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        time.sleep(0.05)  # the main thread has been interrupted when the result is there
        return "locked"

    async def undo(result: str) -> None:
        undone.append(result)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(work, undo)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert undone == ["locked"]

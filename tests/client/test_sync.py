"""Waiting for the background event loop: signals reach the thread that waits, and no result is lost to one."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_dingconf.client.sync import run

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = 150
LATE_SECONDS = 2.0

PROGRAM = """
import asyncio, os, signal, threading
from airflow_provider_dingconf.client.sync import run

class Interrupted(Exception):
    pass

def note(*_):
    os.write(1, b".")
    raise Interrupted

async def tick():
    while True:
        await asyncio.sleep(0.0005)

signal.signal(signal.SIGALRM, lambda *_: None)
signal.signal(signal.SIGTERM, note)
threading.Thread(target=asyncio.run, args=[tick()], daemon=True).start()
os.write(1, b".")
while True:
    try:
        run(tick)
    except Interrupted:
        pass
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that waits for a call, and has another thread."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_signal_that_comes_with_another_one_ends_a_call_in_time(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout
    os.read(process.stdout.fileno(), 1)
    for _ in range(PAIRS):  # in some per cent of the pairs, the kernel gives one signal to the other thread
        process.send_signal(signal.SIGALRM)
        process.send_signal(signal.SIGTERM)
        handled, _, _ = select.select([process.stdout], [], [], LATE_SECONDS)
        assert handled
        os.read(process.stdout.fileno(), 1)


def test_the_background_threads_leave_the_signals_to_the_main_thread() -> None:
    async def threads() -> set[int]:
        return {threading.get_native_id(), await asyncio.to_thread(threading.get_native_id)}

    for thread in run(threads):
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        assert all(blocked >> (each - 1) & 1 for each in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT))


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

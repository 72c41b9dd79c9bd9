"""The client of the soak, a process of its own: workers in threads and in one event loop, and what they cost.

Reads a JSON object from standard input (the actions of each meeting, and which meetings are for threads), and
writes one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from airflow_provider_dingconf.dingtalk.errors import DingTalkError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook

PAGE = os.sysconf("SC_PAGE_SIZE")


def cost() -> dict[str, int]:
    """Return what the process holds now."""
    return {
        "bytes": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "threads": threading.active_count(),
    }


class Soak:
    """Calls of many workers, counted."""

    def __init__(self, work: dict[str, list[str]]) -> None:
        self.work = work
        self.total = sum(map(len, work.values()))
        self.attempts = 0
        self.done = 0
        self.failed: list[str] = []
        self.costs: list[dict[str, int]] = []
        self._lock = threading.Lock()

    def hook(self) -> DingTalkConferenceHook:
        return DingTalkConferenceHook(max_attempts=30, max_seconds=600)

    def count(self, result: dict[str, Any]) -> None:
        with self._lock:
            self.done += 1
            self.attempts += result["attempts"]
            if self.done % (self.total // 5) == 0:
                self.costs.append(cost())

    def thread(self, meeting: str) -> None:
        hook = self.hook()
        try:
            for action in self.work[meeting]:
                self.count(getattr(hook, f"{action}_conference")(meeting))
        except DingTalkError as error:
            self.failed.append(f"{meeting}: {error}")
        finally:
            hook.close()

    async def coroutine(self, meeting: str) -> None:
        try:
            async with self.hook() as hook:
                for action in self.work[meeting]:
                    self.count(await getattr(hook, f"a{action}_conference")(meeting))
        except DingTalkError as error:
            self.failed.append(f"{meeting}: {error}")

    async def coroutines(self, meetings: list[str]) -> None:
        await asyncio.gather(*map(self.coroutine, meetings))


def warm_up(meeting: str) -> None:
    """Make a call of each kind, so that the token is there, and what lives as long as the process."""

    async def lock() -> None:
        async with DingTalkConferenceHook() as hook:
            await hook.alock_conference(meeting)

    hook = DingTalkConferenceHook()
    hook.lock_conference(meeting)
    hook.close()
    asyncio.run(lock())


def main() -> None:
    asked = json.load(sys.stdin)
    warm_up(asked["warm"])
    before = cost()
    soak = Soak(asked["work"])
    waiting = asked["threads"]
    awaiting = [meeting for meeting in soak.work if meeting not in set(waiting)]
    with ThreadPoolExecutor(max_workers=len(waiting) + 1) as threads:
        loop = threads.submit(asyncio.run, soak.coroutines(awaiting))
        list(threads.map(soak.thread, waiting))
        loop.result()
    print(
        json.dumps(
            {
                "before": before,
                "after": cost(),
                "costs": soak.costs,
                "attempts": soak.attempts,
                "done": soak.done,
                "failed": soak.failed,
            }
        )
    )


if __name__ == "__main__":
    main()

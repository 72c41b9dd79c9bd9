"""The client of the soak: a process with workers in threads and in one event loop, and what they cost.

It reads a JSON object from standard input (the actions of each meeting, and a meeting to warm up with), and
writes one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
    """Calls of many workers, counted.

    :param work: the actions of each meeting.
    """

    def __init__(self, work: dict[str, list[str]]) -> None:
        self.work = work
        self.total = sum(map(len, work.values()))
        self.report: dict[str, Any] = {"done": 0, "attempts": 0, "failed": [], "costs": []}
        self._lock = threading.Lock()

    def count(self, result: dict[str, Any]) -> None:
        with self._lock:
            self.report["done"] += 1
            self.report["attempts"] += result["attempts"]
            if self.report["done"] % max(self.total // 5, 1) == 0:
                self.report["costs"].append(cost())

    def in_a_thread(self, meeting: str) -> None:
        try:
            with closing(DingTalkConferenceHook(max_attempts=30, max_seconds=600)) as hook:
                for action in self.work[meeting]:
                    self.count(getattr(hook, f"{action}_conference")(meeting))
        except DingTalkError as error:
            self.report["failed"].append(f"{meeting}: {error}")

    async def in_a_coroutine(self, meeting: str) -> None:
        try:
            async with DingTalkConferenceHook(max_attempts=30, max_seconds=600) as hook:
                for action in self.work[meeting]:
                    self.count(await getattr(hook, f"a{action}_conference")(meeting))
        except DingTalkError as error:
            self.report["failed"].append(f"{meeting}: {error}")

    def run(self) -> None:
        """Let half of the workers be threads, and half coroutines."""
        meetings = list(self.work)
        waiting, awaiting = meetings[: len(meetings) // 2], meetings[len(meetings) // 2 :]

        async def coroutines() -> None:
            await asyncio.gather(*map(self.in_a_coroutine, awaiting))

        with ThreadPoolExecutor(max_workers=len(waiting) + 1) as threads:
            loop = threads.submit(asyncio.run, coroutines())
            list(threads.map(self.in_a_thread, waiting))
            loop.result()


def main() -> None:
    asked = json.load(sys.stdin)
    # The token, and what lives as long as the process, are there first.
    warm_up = Soak({asked["warm"]: ["lock"]})
    warm_up.in_a_thread(asked["warm"])
    asyncio.run(warm_up.in_a_coroutine(asked["warm"]))
    before = cost()
    soak = Soak(asked["work"])
    soak.run()
    print(json.dumps(soak.report | {"before": before, "after": cost()}))


if __name__ == "__main__":
    main()

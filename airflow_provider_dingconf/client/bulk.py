"""Calls for many meetings: the rate limit, the concurrency, and a result for each meeting."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.client.sync import shielded
from airflow_provider_dingconf.dingtalk.errors import DingTalkError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.conferences import Reference

LOG_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConferenceResult:
    """The result of locking or unlocking one meeting.

    :param conference_id: the meeting's conferenceId.
    :param action: ``lock`` or ``unlock``.
    :param attempts: attempts of the call; 0 if none was made.
    :param request_id: the id that DingTalk's support asks for; None if DingTalk gave none.
    :param error: the error; None after a success.
    """

    conference_id: str
    action: str
    attempts: int
    request_id: str | None = None
    error: DingTalkError | None = None

    @property
    def success(self) -> bool:
        """Whether the meeting was locked or unlocked."""
        return self.error is None

    def as_dict(self, *, with_error: bool = True) -> dict[str, Any]:
        """Return the result as plain values, for an XCom.

        :param with_error: whether to include ``error``: None, or a dict.
        """
        plain = {
            "conference_id": self.conference_id,
            "action": self.action,
            "success": self.error is None,
            "attempts": self.attempts,
            "request_id": self.request_id,
        }
        return {**plain, "error": self.error.as_dict() if self.error else None} if with_error else plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> ConferenceResult:
        """Return the result that :meth:`as_dict` turned into plain values."""
        error = plain["error"] and DingTalkError.from_dict(plain["error"])
        return cls(plain["conference_id"], plain["action"], plain["attempts"], plain["request_id"], error)


class RateLimiter:
    """Spreads calls evenly, and starts none during a wait that DingTalk asked for."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1 / per_second
        self._next = self._held_until = 0.0
        self._lock = threading.Lock()

    def count(self) -> float:
        """Count a call, and return the seconds to wait before it is made."""
        with self._lock:
            now = time.monotonic()
            slot = max(self._next, now)
            self._next = slot + self._gap
            return slot - now

    async def wait(self) -> None:
        """Wait until the next call may be made, and count it."""
        await asyncio.sleep(self.count())
        while (left := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(left)
            await asyncio.sleep(self.count())

    def hold(self, seconds: float) -> None:
        """Start no call for some seconds, because DingTalk asked for a wait."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)


_limiters: dict[tuple[object, ...], RateLimiter] = {}
os.register_at_fork(after_in_child=_limiters.clear)  # a thread of the parent may have held the lock of one


def limiter_of(settings: Settings) -> RateLimiter:
    """Return the rate limiter that all bulk locks and polls of an app share in this process."""
    key = (settings.base_url, settings.app or settings.static_token, settings.calls_per_second)
    return _limiters.setdefault(key, RateLimiter(settings.calls_per_second))


async def each_meeting(
    meetings: Sequence[Reference],
    act: Callable[[Reference], Awaitable[ConferenceResult]],
    concurrency: int,
    on_result: Callable[[ConferenceResult], object] | None = None,
) -> list[ConferenceResult]:
    """Act on each meeting, some at a time, and return the results in the order of the meetings."""
    pending, total = iter(meetings), len(meetings)
    results: dict[Reference, ConferenceResult] = {}
    logged_at = time.monotonic()

    async def work() -> None:
        nonlocal logged_at
        for meeting in pending:
            results[meeting] = result = await act(meeting)
            if time.monotonic() - logged_at >= LOG_SECONDS and len(results) < total:
                logged_at = time.monotonic()
                failed = sum(not one.success for one in results.values())
                log.info("%s: %d of %d meetings, %d failed", result.action, len(results), total, failed)
            if on_result is not None:
                on_result(result)

    workers = [asyncio.ensure_future(work()) for _ in range(min(concurrency, total))]
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    finally:  # cancelled once only: a cancelled worker may be rolling its lock back
        for worker in workers:
            worker.cancel()
        await shielded(asyncio.gather(*workers, return_exceptions=True))
    for worker in workers:
        if not worker.cancelled():
            worker.result()
    return [results[meeting] for meeting in meetings]

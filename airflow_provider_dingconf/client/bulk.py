"""Many meetings at once: how fast, in what order, and what came of them."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.calls import check_conference_id
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, InvalidConferenceIdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

PROGRESS_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConferenceResult:
    """What came of locking or unlocking one of many meetings.

    :param conference_id: the meeting's conferenceId.
    :param action: ``lock`` or ``unlock``.
    :param attempts: how often the call was tried.
    :param request_id: what DingTalk's support asks for; None where DingTalk gave none.
    :param error: what went wrong; None where nothing did.
    """

    conference_id: str
    action: str
    attempts: int
    request_id: str | None = None
    error: DingTalkError | None = None

    @property
    def success(self) -> bool:
        """Whether DingTalk did what was asked."""
        return self.error is None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, fit for an XCom."""
        return {
            "conference_id": self.conference_id,
            "action": self.action,
            "success": self.success,
            "attempts": self.attempts,
            "request_id": self.request_id,
            "error": self.error.as_dict() if self.error else None,
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> ConferenceResult:
        """Return what :meth:`as_dict` told of."""
        error = told["error"] and DingTalkError.from_dict(told["error"])
        return cls(told["conference_id"], told["action"], told["attempts"], told["request_id"], error)


class Pace:
    """Spreads calls out evenly, and makes none while DingTalk wants none.

    :param per_second: at most so many calls.
    """

    def __init__(self, per_second: float) -> None:
        self._gap = 1 / per_second
        self._next = 0.0
        self._held_until = 0.0

    def count(self) -> float:
        """Count a call, and return the seconds to wait before it is made."""
        now = time.monotonic()
        turn = max(self._next, now)
        self._next = turn + self._gap
        return turn - now

    async def turn(self) -> None:
        """Wait for the next call's turn."""
        await asyncio.sleep(self.count())
        while (wait := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)
            await asyncio.sleep(self.count())

    def hold(self, seconds: float) -> None:
        """Begin no call for some seconds: DingTalk takes none from anybody."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)


def check_conference_ids(conference_ids: object) -> list[str]:
    """Return the ids, each once, if every one of them is sound.

    :raises InvalidConferenceIdError: they are no collection of ids, or one is not one path segment.
    """
    if isinstance(conference_ids, (str, bytes)) or not hasattr(conference_ids, "__iter__"):
        raise InvalidConferenceIdError(
            f"conference_ids: expected a list of conferenceIds, got a {type(conference_ids).__name__}"
        )
    ids = list(conference_ids)
    try:
        for conference_id in ids:
            check_conference_id(conference_id)
    except InvalidConferenceIdError as error:
        where = ids.index(conference_id)
        raise InvalidConferenceIdError(f"number {where} of the list, {error.message}") from None
    return list(dict.fromkeys(ids))


async def each_of(
    conference_ids: Iterable[str],
    action: str,
    act: Callable[[str], Awaitable[ConferenceResult]],
    *,
    concurrency: int,
    is_of_all: Callable[[DingTalkError], bool],
    on_result: Callable[[ConferenceResult], object],
) -> list[ConferenceResult]:
    """Do something with each meeting, some at a time, and return what came of each, in their order.

    :param act: tries one meeting.
    :param is_of_all: whether an error is not about its meeting but about every one, such as an address ban:
        the rest then get the same error and are not tried.
    :param on_result: is told of each result as it comes.
    """
    ids = list(conference_ids)
    pending = iter(enumerate(ids))
    results: list[ConferenceResult | None] = [None] * len(ids)
    untried: list[DingTalkError] = []
    progress = _Progress(action, len(ids))

    async def work() -> None:
        for number, conference_id in pending:
            if untried:
                result = ConferenceResult(conference_id, action, 0, error=untried[0])
            else:
                result = await act(conference_id)
                if result.error and is_of_all(result.error):
                    untried.append(DingTalkError.from_dict({**result.error.as_dict(), "uncertain": False}))
            results[number] = result
            progress.count(result)
            on_result(result)

    workers = [asyncio.ensure_future(work()) for _ in range(min(concurrency, len(ids)))]
    if workers:
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # once: a worker that was in the middle of a lock is busy undoing it
            for worker in workers:
                worker.cancel()
            await to_the_end(asyncio.gather(*workers, return_exceptions=True))
        for worker in workers:
            if not worker.cancelled():
                worker.result()
    return [result for result in results if result]


async def to_the_end(work: Awaitable[Any]) -> None:
    """Await something whose end is near, even where the task that awaits it is cancelled meanwhile.

    It is cancelled then, whatever the work ended in.
    """
    future, cancelled = asyncio.ensure_future(work), False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:  # noqa: PERF203
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError from future.exception()
    future.result()


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, action: str, total: int) -> None:
        self._action, self._total = action, total
        self._done = self._failed = 0
        self._said = time.monotonic()

    def count(self, result: ConferenceResult) -> None:
        self._done += 1
        self._failed += not result.success
        if time.monotonic() - self._said >= PROGRESS_SECONDS and self._done < self._total:
            self._said = time.monotonic()
            log.info("%s: %d of %d meetings, %d failed", self._action, self._done, self._total, self._failed)

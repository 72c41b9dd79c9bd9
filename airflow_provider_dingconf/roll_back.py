"""A lock task that does not succeed unlocks what it locked, and an unlock logs what is still locked.

``Try`` rolls back, unless Airflow has begun another try of the task: that one owns the locks then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import get_current_context

from airflow_provider_dingconf.client.sync import CLEAN_UP_SECONDS, interruptions_held, run, within
from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

TRY_KEY = "dingtalk_lock_try"
"""The key of the XCom that tells a try whether Airflow has begun another one."""

log = logging.getLogger(f"airflow.task.{__name__}")  # a child of the task's logger


class Try:
    """One try of a task, in the process that executes it.

    Airflow deletes a task's XComs when it begins another try. If the XCom that is pushed here is gone, a
    process that thaws, or that outlived its scheduler, knows that a newer try has locked the meetings.

    :param ti: Airflow's task instance; None if there is none: no try then counts as superseded.
    """

    def __init__(self, ti: Any) -> None:
        self._unlocks = 0  # the meetings that are about to be unlocked
        self._ti = ti
        self._name = f"[{socket.gethostname()} {os.getpid()}]"  # one for all blocks of the process
        if ti is not None:
            ti.xcom_push(key=TRY_KEY, value=self._name)

    @classmethod
    def current(cls) -> Self | None:
        """Return the try that this process executes; None outside a task."""
        try:
            ti = get_current_context()["ti"]
        except Exception:  # its class depends on the version of Airflow
            return None
        return cls(ti)

    def roll_back(self, hook: DingTalkConferenceHook, meetings: list[str], *, quickly: bool) -> None:
        """Unlock meetings that are or may be locked, unless this try is superseded; hold SIGTERM meanwhile.

        :param quickly: whether Airflow is about to kill the process.
        """
        with interruptions_held(), closing(hook):
            self._unlocks = len(meetings)
            results = run(partial(hook._connect().roll_back, meetings, quickly=quickly))
            log_still_locked(one.conference_id for one in results if not is_unlocked(one))

    async def is_superseded(self) -> bool:
        """Return whether Airflow has begun another try; False if Airflow does not respond in time."""
        with suppress(asyncio.TimeoutError):
            if await within(asyncio.to_thread(self._is_superseded), CLEAN_UP_SECONDS / 2):
                log.warning("Airflow has begun another try of this task: nothing is rolled back")
                return True
        if self._unlocks:
            log.warning("Rolling back: unlocking %d meetings that are or may be locked", self._unlocks)
        return False

    def _is_superseded(self) -> bool:
        ti = self._ti
        for _ in range(2):  # Airflow 3 first responds to an earlier request that was interrupted
            try:
                found = ti.xcom_pull(task_ids=ti.task_id, key=TRY_KEY, map_indexes=ti.map_index)
                if self._name in str(found):  # an XCom backend may return bytes, or JSON
                    return False
            except Exception as error:  # noqa: PERF203
                detail = getattr(getattr(error, "error", None), "detail", None) or {}
                if detail.get("status_code") not in {401, 403}:  # those: the token of this try has expired
                    return False
        return True


def when_airflow_fails(task: Any, undo: Callable[[], None]) -> None:
    """Undo also if Airflow fails or skips the task after ``execute``: in ``post_execute``, or at the XCom.

    Then Airflow only calls the operator's callbacks, in the same process.
    """
    for kind in ("on_failure_callback", "on_retry_callback", "on_skipped_callback"):
        theirs = getattr(task, kind, None) or []
        theirs = theirs if isinstance(theirs, (list, tuple)) else [theirs]
        setattr(task, kind, [lambda _context: undo(), *theirs])


def is_unlocked(result: ConferenceResult) -> bool:
    """Return whether nobody is locked out after an unlock; a meeting that has ended needs none."""
    return result.error is None or isinstance(result.error, ConferenceClosedError)


def log_still_locked(meetings: Iterable[str | None]) -> None:
    """Log which meetings are still locked, if any, and how to unlock them by hand."""
    if listed := ", ".join(map(str, meetings)):
        log.error(
            "Still locked: %s. To unlock by hand: a host switches the lock off in DingTalk, or run "
            "DingTalkConferenceHook().unlock_conference(conference_id)",
            listed,
        )

"""``RollBack``: a lock task that does not succeed unlocks what it has locked.

Airflow can fail a task after its ``execute``, too: in ``post_execute`` or with the XCom. Of the operator it
then calls the callbacks alone; they run in the same process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError
from airflow_provider_dingconf.tries import Try

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

log = logging.getLogger(f"airflow.task.{__name__}")  # below the logger of a task, as its own


class RollBack:
    """What a try of a lock task has locked, and has to unlock if it does not succeed.

    :param context: the task's.
    :param hook: what locks them; it is to roll nothing back once the try is superseded.
    """

    def __init__(self, context: Context, hook: DingTalkConferenceHook) -> None:
        self.meetings: list[str] = []
        """The meetings that are locked, or may be."""
        self._dingtalk_conn_id = hook.dingtalk_conn_id
        ti = context.get("ti")
        self._try = hook._this_try = Try(ti) if ti is not None else None

    def now(self, hook: DingTalkConferenceHook, *, quickly: bool) -> None:
        """Unlock the meetings, unless this try is superseded; SIGTERM waits.

        :param quickly: whether Airflow is about to kill the process.
        """
        from airflow_provider_dingconf.client.sync import interruptions_held

        meetings, self.meetings = self.meetings, []
        if not meetings:
            return
        with interruptions_held():
            log.warning("Rolling back: unlocking %d meetings that are or may be locked", len(meetings))
            results = hook._roll_back(meetings, quickly=quickly)
            log_still_locked(one.conference_id for one in results if not is_unlocked(one))

    def if_airflow_fails(self, task: Any) -> None:
        """Roll back as well if the task does not succeed although its ``execute`` has.

        :param task: the operator, in the process that executes it.
        """
        for kind in ("on_failure_callback", "on_retry_callback", "on_skipped_callback"):
            theirs = getattr(task, kind, None) or []
            setattr(
                task, kind, [self._callback, *(theirs if isinstance(theirs, (list, tuple)) else [theirs])]
            )

    def _callback(self, _context: Context) -> None:
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        hook = DingTalkConferenceHook(self._dingtalk_conn_id)
        hook._this_try = self._try
        try:
            self.now(hook, quickly=False)
        finally:
            hook.close()


def is_unlocked(result: ConferenceResult) -> bool:
    """Return whether nobody is kept out of a meeting after an unlock: an ended one needs none."""
    return result.error is None or isinstance(result.error, ConferenceClosedError)


def log_still_locked(meetings: Iterable[str | None]) -> None:
    """Log which meetings are not unlocked, if any, and how to unlock them by hand."""
    if listed := ", ".join(map(str, meetings)):
        log.error(
            "Still locked: %s. To unlock by hand: a host switches the lock off in DingTalk, or run "
            "DingTalkConferenceHook().unlock_conference(conference_id)",
            listed,
        )

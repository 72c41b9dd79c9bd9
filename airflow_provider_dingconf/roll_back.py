"""``RollBack``: a lock task that does not succeed unlocks what it has locked.

Airflow can fail a task after its ``execute``, too: in ``post_execute`` or with the XCom. Of the operator it
then calls the callbacks alone; they run in the same process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

TRY_KEY = "dingtalk_lock_try"
"""The XCom by which a try finds out whether Airflow has begun another one meanwhile."""

log = logging.getLogger(f"airflow.task.{__name__}")  # below the logger of a task, as its own


class RollBack:
    """What a try of a lock task has locked, and has to unlock if it does not succeed.

    Airflow deletes a task's XComs when it begins another try: the XCom that is pushed here tells a frozen
    process that thaws, or one that outlived its scheduler, that its successor has locked the meetings.

    :param context: the task's.
    :param dingtalk_conn_id: the connection to unlock with.
    :param recognisable: whether to push that XCom, which is a call to Airflow.
    """

    def __init__(self, context: Context, dingtalk_conn_id: str, *, recognisable: bool) -> None:
        self.meetings: list[str] = []
        """The meetings that are locked, or may be."""
        self._dingtalk_conn_id = dingtalk_conn_id
        self._ti: Any = context.get("ti") if recognisable else None
        if self._ti is not None:
            self._try = uuid4().hex
            self._ti.xcom_push(key=TRY_KEY, value=self._try)

    def now(self, hook: DingTalkConferenceHook, *, quickly: bool) -> None:
        """Unlock the meetings, unless this try is superseded; SIGTERM waits.

        :param quickly: whether Airflow is about to kill the process.
        """
        from airflow_provider_dingconf.client.sync import interruptions_held

        meetings, self.meetings = self.meetings, []
        if not meetings:
            return
        with interruptions_held():
            if self._is_superseded():
                log.warning("Airflow has begun another try of this task: nothing is rolled back")
                return
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
        try:
            self.now(hook, quickly=False)
        finally:
            hook.close()

    def _is_superseded(self) -> bool:
        """Return whether Airflow has begun another try; if it cannot be asked, it counts as not."""
        ti = self._ti
        if ti is None:
            return False
        try:
            found = ti.xcom_pull(task_ids=ti.task_id, key=TRY_KEY, map_indexes=ti.map_index)
        except BaseException as error:  # an interruption, too: what is locked comes first
            detail = getattr(getattr(error, "error", None), "detail", None) or {}
            return detail.get("status_code") in {401, 403}  # the try's own token has expired
        return bool(found != self._try)


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

"""A lock task that does not succeed unlocks what it has locked, and an unlock says what is still locked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.client.sync import interruptions_held
from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook
    from airflow_provider_dingconf.tries import Try

log = logging.getLogger(f"airflow.task.{__name__}")  # below the logger of a task, as its own


def roll_back(hook: DingTalkConferenceHook, this_try: Try, meetings: list[str], *, quickly: bool) -> None:
    """Unlock meetings that are or may be locked, unless their try is superseded; SIGTERM waits.

    :param hook: what locked them; it asks the try.
    :param quickly: whether Airflow is about to kill the process.
    """
    with interruptions_held():
        this_try.unlocks = len(meetings)
        results = hook._roll_back(meetings, quickly=quickly)
        log_still_locked(one.conference_id for one in results if not is_unlocked(one))
        hook.close()


def when_airflow_fails(task: Any, undo: Callable[[], None]) -> None:
    """Undo as well if Airflow fails or skips a task after its ``execute``: in ``post_execute``, at the XCom.

    Of the operator it then calls the callbacks alone; they run in the same process.

    :param task: the operator, in the process that executes it.
    """
    for kind in ("on_failure_callback", "on_retry_callback", "on_skipped_callback"):
        theirs = getattr(task, kind, None) or []
        theirs = theirs if isinstance(theirs, (list, tuple)) else [theirs]
        setattr(task, kind, [lambda _context: undo(), *theirs])


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

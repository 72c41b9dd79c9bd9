"""Many meetings in one task: which they are, the results, and the task state that follows from them."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import XComArg

from airflow_provider_dingconf.client.bulk import ConferenceResult
from airflow_provider_dingconf.dingtalk.conferences import conference_id_in
from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceClosedError,
    ConferencesError,
    InvalidInputError,
)
from airflow_provider_dingconf.outcomes import Outcome

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.errors import DingTalkError

MOST_ROWS = 50
"""The maximum number of rows of a table in the log."""

ENTRY_RESULTS = 20
"""Results in one entry of Airflow's store: about one second's. Airflow warns of entries over 64 KiB."""

log = logging.getLogger(__name__)


def is_collection(value: object) -> bool:
    """Return whether a value stands for many meetings."""
    # An XComArg only seems to be iterable. Airflow 3.0 asks a mapped task for its text with one in it.
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, XComArg))


def check_meetings(value: object) -> None:
    """Check that a parameter is no iterator: its first reader, such as the lock, leaves the others nothing.

    :raises InvalidInputError: it is one.
    """
    if isinstance(value, Iterator):
        raise InvalidInputError(
            f"conference_id: a {type(value).__name__} can be read only once; give a list, such as list(...)"
        )


def meetings_in(value: Any, action: str) -> Any:
    """Return the meeting, or the list of meetings, in a parameter, which may be the XCom of other tasks.

    A template may have rendered it as text, also as JSON. For an unlock, a meeting counts only if it is or
    may be locked: not if its lock failed or was skipped, but if the response to its lock was lost.
    """
    for read in (ast.literal_eval, json.loads):  # a rendered text is Python's, and that of tojson JSON
        if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                value = read(value.strip())
    if not is_collection(value):
        if action == "unlock" and isinstance(value, Mapping) and not _may_be_locked(value):
            return None
        return conference_id_in(value)
    meetings: list[Any] = []
    for one in value:
        found = meetings_in(one, action)
        if is_collection(found):  # a mapped task of lists
            meetings += found
        elif found is not None or action == "lock":
            meetings.append(found)
    return meetings


def _may_be_locked(result: Mapping[str, Any]) -> bool:
    if result.get("success", True) or result.get("action") != "lock":
        return True
    error = result.get("error") or {}
    return bool(error.get("uncertain")) and result.get("conference_id") is not None


def tries_are_left(context: Context) -> bool:
    """Return whether Airflow can retry the task."""
    ti = context.get("ti")
    return ti is not None and ti.try_number <= (ti.max_tries or 0)


def error_of_all(
    results: list[ConferenceResult], on_error: Mapping[str, Outcome], *, may_retry: bool
) -> DingTalkError | None:
    """Return the error that gives a task the worst outcome of its meetings; None if all are successes.

    An ended meeting counts as a success, unless all have ended or ``on_error`` names its error. If Airflow
    can retry the task, RETRY is worse than FAIL: a retry may help at least one meeting.

    :param results: sets the ``outcome`` of their errors.
    """
    errors = {one.conference_id: one.error for one in results if one.error}
    all_ended = all(isinstance(one.error, ConferenceClosedError) for one in results)
    for each in errors.values():
        if isinstance(each, ConferenceClosedError) and not all_ended:
            each.outcome = Outcome.SUCCEED
        each.outcome = each.outcome_with(on_error)
    counting = {name: each for name, each in errors.items() if each.outcome is not Outcome.SUCCEED}
    if not counting:
        return None
    action, total = results[0].action, len(results)
    error = ConferencesError.of(action, counting, total)
    if all_ended:
        error = ConferencesError(f"nothing to {action}: all of the {total} meetings have ended")
    worst_last = [Outcome.SKIP, Outcome.FAIL, Outcome.RETRY]
    if not may_retry:
        worst_last = [Outcome.SKIP, Outcome.RETRY, Outcome.FAIL]
    error.outcome = max((each.outcome for each in counting.values()), key=worst_last.index)
    waits = [each.retry_after for each in counting.values() if each.outcome is Outcome.RETRY]
    error.retry_after = max((wait for wait in waits if wait is not None), default=None)
    return error


def table(results: list[ConferenceResult]) -> str:
    """Return a table of the results for the log. :func:`error_of_all` must have set the outcomes."""
    failed = [(one.conference_id, one.error) for one in results if one.error]
    rows = []
    for name, error in failed[:MOST_ROWS]:
        word = "noted" if error.outcome is Outcome.SUCCEED else error.outcome.value
        rows.append(f"  {name}  {word:<5}  {error.summary}")
    if len(failed) > MOST_ROWS:
        rows.append(f"  and {len(failed) - MOST_ROWS} more; the XCom holds them all")
    head = f"{results[0].action}: {len(results) - len(failed)} of {len(results)} meetings done"
    return "\n".join([head + (", but not:" if rows else ""), *rows])


class CompletedMeetings:
    """The results of completed meetings, which a retry does not lock or unlock again.

    Airflow deletes a task's XComs before a retry, but since 3.3 it has a store for the state of a task.
    Without the store, or if it fails, a retry repeats the calls for completed meetings, which does no harm.

    :param settings: those of the connection: results from another host or app do not count.
    :param retries: those of the task.
    """

    def __init__(self, context: Mapping[str, Any], settings: Settings, retries: int | None) -> None:
        self._store: Any = context.get("task_state_store")
        # A cleared task must lock all meetings again. Clearing sets max_tries to the tries so far plus the
        # retries, so one of the two has changed. But if the last try is cleared while it runs, it unlocks all
        # meetings, and max_tries does not count the try that follows.
        ti = context.get("ti")
        tries = max(ti.max_tries or 0, ti.try_number - 1) if ti else 0
        self._life = [tries, retries, settings.base_url, settings.app and settings.app.client_id]
        self._new: list[dict[str, Any]] = []
        self._entries = 0

    def load(self) -> list[ConferenceResult]:
        """Return the results that earlier tries of the task saved."""
        found: list[dict[str, Any]] = []
        while entry := self._ask("get"):
            found += entry
            self._entries += 1
        return [ConferenceResult.from_dict(one) for one in found]

    def add(self, result: ConferenceResult) -> None:
        """Note a result; save after every :data:`ENTRY_RESULTS`."""
        self._new.append(result.as_dict())
        if len(self._new) >= ENTRY_RESULTS:
            self.save()

    def save(self) -> None:
        """Save the noted results."""
        if self._new:
            self._ask("set", self._new)
            self._new = []
            self._entries += 1

    def _ask(self, method: str, *values: Any) -> Any:
        """Call the store; return None if there is none or it has failed, since it must not fail the task."""
        if self._store is None:
            return None
        key = sha256(json.dumps([*self._life, self._entries]).encode()).hexdigest()
        try:
            return getattr(self._store, method)(f"dingconf_completed_{key}", *values)
        except Exception as error:  # whatever Airflow raises
            log.warning("Completed meetings are no longer saved; a retry repeats their calls: %s", error)
            self._store = None

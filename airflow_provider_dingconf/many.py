"""Many meetings in one task: which they are, how each ends, and what that makes of the task."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.client.bulk import ConferenceResult
from airflow_provider_dingconf.dingtalk.conferences import conference_id_in
from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError, ConferencesError
from airflow_provider_dingconf.outcomes import Outcome

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.errors import DingTalkError

MOST_ROWS = 50
"""In the table of a log."""

ENTRY_RESULTS = 20
"""In one entry of Airflow's store: about as many as a second brings. Airflow warns of one over 64 KiB."""

log = logging.getLogger(__name__)


def is_collection(value: object) -> bool:
    """Return whether a value stands for many meetings."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def meetings_in(value: Any, action: str) -> Any:
    """Return the meeting, or the list of meetings, in a parameter that may be the XCom of such tasks.

    A template may have rendered it as text. For an unlock, a lock that failed, was skipped or refused hands
    on nothing to unlock; one whose response was lost does.
    """
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value.strip())
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
    """Return the error that gives a task the worst of its meetings' states; None if that is success.

    An ended meeting counts as a success unless all have ended or ``on_error`` names its error. If the task
    can be retried, a meeting that a retry may help counts for more than one that fails for good.

    :param results: their errors get the outcomes that they count with.
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
    """Return how the meetings ended, for a log; :func:`error_of_all` has given the errors their outcomes."""
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
    """The results of the meetings that a retry does not lock or unlock again.

    Airflow empties a task's XComs before a retry. From 3.3 on it has a store for the state of a task; before,
    or if the store fails, a retry asks again for completed meetings, which costs calls and changes nothing.

    :param settings: the connection's: results of another DingTalk do not count.
    :param retries: of the task.
    """

    def __init__(self, context: Mapping[str, Any], settings: Settings, retries: int | None) -> None:
        self._store: Any = context.get("task_state_store")
        # If the task is cleared, Airflow makes max_tries the tries so far and the retries of then: one of the
        # two differs from before, and all is asked for again. If the last try is cleared while it runs, it
        # unlocks all, and another one comes that max_tries does not count.
        ti = context.get("ti")
        tries = max(ti.max_tries or 0, ti.try_number - 1) if ti else 0
        self._life = [tries, retries, settings.base_url, settings.app and settings.app.client_id]
        self._new: list[dict[str, Any]] = []
        self._entries = 0

    def load(self) -> list[ConferenceResult]:
        """Return the results that earlier tries of the task have saved."""
        found: list[dict[str, Any]] = []
        while entry := self._ask("get"):
            found += entry
            self._entries += 1
        return [ConferenceResult.from_dict(one) for one in found]

    def add(self, result: ConferenceResult) -> None:
        """Note a result, and save now and then."""
        self._new.append(result.as_dict())
        if len(self._new) >= ENTRY_RESULTS:
            self.save()

    def save(self) -> None:
        """Save the results that were noted."""
        if self._new:
            self._ask("set", self._new)
            self._new = []
            self._entries += 1

    def _ask(self, method: str, *values: Any) -> Any:
        """Return what the store returns; None if there is none, or it has failed: the meetings come first."""
        if self._store is None:
            return None
        key = sha256(json.dumps([*self._life, self._entries]).encode()).hexdigest()
        try:
            return getattr(self._store, method)(f"dingconf_completed_{key}", *values)
        except Exception as error:  # whatever Airflow raises
            log.warning("Completed meetings are no longer saved; a retry asks for them again: %s", error)
            self._store = None

"""Many meetings in one task: which they are, how each ends, and what that makes of the task."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.conferences import conference_id_in
from airflow_provider_dingconf.dingtalk.endpoints import LOCK
from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceClosedError,
    ConferencesError,
    DingTalkError,
    InvalidInputError,
)
from airflow_provider_dingconf.outcomes import Outcome, outcome_of
from airflow_provider_dingconf.roll_back import is_unlocked, log_still_locked
from airflow_provider_dingconf.task_state import CompletedMeetings

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook
    from airflow_provider_dingconf.lock_operators import ConferenceOperator
    from airflow_provider_dingconf.roll_back import RollBack

MOST_ROWS = 50
"""In the table of a log."""

_WORST_LAST = (Outcome.SUCCEED, Outcome.SKIP, Outcome.RETRY, Outcome.FAIL)


def is_collection(value: object) -> bool:
    """Return whether a value stands for many meetings."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def meetings_in(value: Any, action: str) -> Any:
    """Return the meeting, or the list of meetings, in a parameter that may be the XCom of such tasks.

    For an unlock, a lock that failed, was skipped or refused hands on nothing to unlock; one whose response
    was lost does.
    """
    if isinstance(value, str):
        return value
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
    return bool(error.get("uncertain"))


def tries_are_left(context: Context) -> bool:
    """Return whether Airflow can retry the task."""
    ti = context.get("ti")
    return ti is not None and ti.try_number <= (ti.max_tries or 0)


class ManyMeetings:
    """One try of a task of many meetings.

    :param task: the operator; it holds the parameters.
    :param hook: of its connection.
    :param context: the task's.
    :param roll_back: is given the meetings that are locked, or may be; None for an unlock.
    """

    def __init__(
        self,
        task: ConferenceOperator,
        hook: DingTalkConferenceHook,
        context: Context,
        roll_back: RollBack | None,
    ) -> None:
        self._task, self._hook, self._context, self._roll_back = task, hook, context, roll_back
        # A section locks all again at each try: the one before it has rolled back.
        stored: Any = {} if task.unlock_on_failure else context
        self._state = CompletedMeetings(stored, hook.settings)
        self._before: dict[str, ConferenceResult] = {}
        self._completed: set[str] = set()

    def act(self, given: Any) -> list[dict[str, Any]]:
        """Lock or unlock the meetings that no earlier try has completed, and return the task's XCom.

        :param given: the meetings; None for the running ones.
        :raises InvalidInputError: no meeting was tried.
        :raises: what gives the task the state that belongs to the results.
        """
        if self._task.only_listed:
            return self._would_act(given)
        results, error = self._results(given)
        xcom = [one.as_dict() for one in results]
        self._task.keep_links(self._context, self._hook.settings.base_url, LOCK.page, error)
        if error is not None:
            self._task.push_anyway(self._context, xcom)
            self._task.end_in(error)
        return xcom

    def _results(self, given: Any) -> tuple[list[ConferenceResult], DingTalkError | None]:
        """Return the result of each meeting, and the error that gives the task its state, if any."""
        from airflow_provider_dingconf.client.bulk import ConferenceResult

        task, cause = self._task, None
        ids: list[Any] = []
        new: list[ConferenceResult] = []
        for saved in self._state.load():
            self._before[saved["conference_id"]] = result = ConferenceResult.from_dict(saved)
            self._note(result)
        try:
            with task.interruptible():
                ids = [one for one in self._wanted(given) if str(one) not in self._before]
                do = self._hook.lock_conferences if task.action == "lock" else self._hook.unlock_conferences
                rate = {"calls_per_second": task.calls_per_second} if task.calls_per_second else {}
                new = do(ids, concurrency=task.concurrency, on_result=self._complete, **rate)
        except InvalidInputError:
            raise
        except DingTalkError as error:  # no list of the running meetings, or no access token
            cause = error
            new = [ConferenceResult(one, task.action, 0, error=error) for one in dict.fromkeys(ids)]
        except BaseException:
            if task.action == "unlock":
                log_still_locked(one for one in ids if one not in self._completed)
            raise
        finally:
            self._state.save()
        results = [*self._before.values(), *new]
        error = error_of_all(results, task.on_error, cause, may_retry=tries_are_left(self._context))
        if results:
            task.log.log(logging.WARNING if error else logging.INFO, "%s", table(results, task.on_error))
        if error is not None:
            error.attempts = max([1, *(one.attempts for one in new)])
            if task.action == "unlock":
                log_still_locked(one.conference_id for one in results if not is_unlocked(one))
        if error is None or error.outcome is not Outcome.RETRY:
            self._state.clear()
        return results, error

    def _would_act(self, given: Any) -> list[dict[str, Any]]:
        """Log which meetings the task would lock or unlock, and return an XCom by which none is locked."""
        from airflow_provider_dingconf.client.bulk import ConferenceResult

        action = self._task.action
        with self._task.interruptible():
            meetings = self._wanted(given)
        self._task.log.info("dry_run: would %s %d meetings", action, len(meetings))
        return [{**ConferenceResult(one, action, 0).as_dict(), "success": False} for one in meetings]

    def _wanted(self, given: Any) -> list[Any]:
        """Return the meetings' ids: those given, or those of the running meetings that are wanted."""
        task, ids = self._task, given
        if task.running:
            running = list(self._hook.running_conferences(**self._filters()))
            ids = [one.conference_id for one in running]
            if task.only_listed:
                task.log.info("running: %s", ", ".join(map(str, running)) or "none")
        most, found = task.max_meetings, len({str(one) for one in ids})
        if most is not None and found > most:
            raise InvalidInputError(
                f"max_meetings: {found} meetings are found, and the task may {task.action} {most}; narrow "
                "title_pattern or creator_id, or raise max_meetings"
            )
        return list(ids)

    def _filters(self) -> dict[str, Any]:
        """Return which of the running meetings are wanted.

        :raises InvalidInputError: a template has rendered to nothing.
        """
        wanted = {}
        for name in self._task.filters:
            value = getattr(self._task, name)
            if value is None or (isinstance(value, str) and value.strip() in {"", "None"}):
                raise InvalidInputError(
                    f"{name}: it was rendered as {value!r}, which is no filter; check its template or XCom, "
                    f"or leave {name} out to take every running meeting"
                )
            wanted[name] = str(value) if type(value) is int else value  # of a native template
        return wanted

    def _complete(self, result: ConferenceResult) -> None:
        if is_unlocked(result):
            self._completed.add(result.conference_id)
        self._note(result)
        if result.error is None or outcome_of(result.error, self._task.on_error) is not Outcome.RETRY:
            self._state.add(result.as_dict())

    def _note(self, result: ConferenceResult) -> None:
        if self._roll_back is not None and (result.error is None or result.error.uncertain):
            self._roll_back.meetings.append(result.conference_id)


def error_of_all(
    results: list[ConferenceResult],
    on_error: Mapping[str, Outcome],
    cause: DingTalkError | None = None,
    *,
    may_retry: bool,
) -> DingTalkError | None:
    """Return the error that gives a task the worst of its meetings' states; None if that is success.

    An ended meeting counts as a success unless all have ended or ``on_error`` names its error. If the task
    can be retried, a meeting that a retry may help counts for more than one that fails for good.

    :param on_error: the overrides, as ``check_on_error`` returns them.
    :param cause: the error for which no meeting was tried; it is then the error that is returned.
    :param may_retry: whether Airflow can retry the task.
    """
    ended = [one.error for one in results if isinstance(one.error, ConferenceClosedError)]
    if len(ended) < len(results):
        for noted in ended:
            noted.outcome = Outcome.SUCCEED
    outcomes = {one.conference_id: outcome_of(one.error, on_error) for one in results if one.error}
    counting = {
        one.conference_id: one.error
        for one in results
        if one.error and outcomes[one.conference_id] is not Outcome.SUCCEED
    }
    if cause is not None:
        outcomes[""] = outcome_of(cause, on_error)
    worst = max(outcomes.values(), key=_WORST_LAST.index, default=Outcome.SUCCEED)
    if worst is Outcome.SUCCEED:
        return None
    error = cause or _error_of(results, counting, all_ended=len(ended) == len(results))
    retried = [
        one
        for one in (*counting.values(), *([cause] if cause else ()))
        if outcome_of(one, on_error) is Outcome.RETRY
    ]
    error.outcome = Outcome.RETRY if may_retry and retried else worst
    error.retry_after = max((one.retry_after for one in retried if one.retry_after is not None), default=None)
    return error


def _error_of(
    results: list[ConferenceResult], counting: Mapping[str, DingTalkError], *, all_ended: bool
) -> DingTalkError:
    action, total = results[0].action, len(results)
    if all_ended:
        return ConferencesError(f"nothing to {action}: all of the {total} meetings have ended")
    return ConferencesError.of(action, counting, total)


def table(results: list[ConferenceResult], on_error: Mapping[str, Outcome]) -> str:
    """Return how the meetings ended, for a log: a row for each that failed, and the number of the others."""
    failed = [(one, one.error) for one in results if one.error]
    rows = []
    for one, error in failed[:MOST_ROWS]:
        outcome = outcome_of(error, on_error)
        word = "noted" if outcome is Outcome.SUCCEED else outcome.value
        rows.append(f"  {one.conference_id}  {word:<5}  {error.summary}")
    if len(failed) > MOST_ROWS:
        rows.append(f"  and {len(failed) - MOST_ROWS} more; the XCom holds them all")
    head = f"{results[0].action}: {len(results) - len(failed)} of {len(results)} meetings done"
    return "\n".join([head + (", but not:" if rows else ""), *rows])

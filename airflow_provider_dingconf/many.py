"""Many meetings in one task: which they are, how each ends, and what that makes of the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.conferences import conference_id_in
from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError, ConferencesError
from airflow_provider_dingconf.outcomes import Outcome, outcome_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.dingtalk.errors import DingTalkError

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
    return bool(error.get("uncertain")) and result.get("conference_id") is not None


def tries_are_left(context: Context) -> bool:
    """Return whether Airflow can retry the task."""
    ti = context.get("ti")
    return ti is not None and ti.try_number <= (ti.max_tries or 0)


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
    errors = {one.conference_id: one.error for one in results if one.error}
    ended = [error for error in errors.values() if isinstance(error, ConferenceClosedError)]
    all_ended = len(ended) == len(results)
    for noted in [] if all_ended else ended:
        noted.outcome = Outcome.SUCCEED
    if cause is not None:
        errors[""] = cause
    outcomes = {name: outcome_of(error, on_error) for name, error in errors.items()}
    counting = {name: one for name, one in errors.items() if outcomes[name] is not Outcome.SUCCEED}
    if not counting:
        return None
    if cause is not None:
        error = cause
    elif all_ended:
        count = len(results)
        error = ConferencesError(f"nothing to {results[0].action}: all of the {count} meetings have ended")
    else:
        error = ConferencesError.of(results[0].action, counting, len(results))
    retried = [one for name, one in counting.items() if outcomes[name] is Outcome.RETRY]
    worst = max(outcomes.values(), key=_WORST_LAST.index)
    error.outcome = Outcome.RETRY if may_retry and retried else worst
    error.retry_after = max((one.retry_after for one in retried if one.retry_after is not None), default=None)
    return error


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

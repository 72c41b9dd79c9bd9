"""How a DingTalk error ends a task: it fails, is skipped, is retried or succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, InvalidInputError, Outcome, error_classes
from airflow_provider_dingconf.dingtalk.inputs import hint

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Outcome", "apply_outcome", "check_on_error", "outcome_of", "task_outcome"]

outcome_of = DingTalkError.outcome_with  # also available as a function of this module


def check_on_error(on_error: Mapping[str, Outcome | str] | None) -> dict[str, Outcome]:
    """Return the overrides in an ``on_error``, and check every name and outcome in it.

    :param on_error: outcomes by error code or by the name of an error class, such as ``{"confClosed": "fail",
        "ThrottledError": "skip"}``. A code takes precedence over a class, and a class over its base classes.
    :raises InvalidInputError: a name or an outcome is unknown; the message suggests the nearest known one.
    """
    if on_error is None:
        return {}
    if not isinstance(on_error, Mapping):
        raise InvalidInputError(
            f"on_error: expected a dict of outcomes by code or class, got {type(on_error).__name__}"
        )
    outcomes = {outcome.value: outcome for outcome in Outcome}
    known = [*ERRORS, *error_classes()]
    checked = {}
    for code, outcome in on_error.items():
        if code not in known:
            raise InvalidInputError(
                f"on_error: {code!r} is neither a known error code nor an error class"
                f"{hint(getattr(code, '__name__', code), known)}"
            )
        name = outcome.lower() if isinstance(outcome, str) else outcome
        if not isinstance(name, str) or name not in outcomes:
            raise InvalidInputError(
                f"on_error: {outcome!r}, for {code}, is not an outcome{hint(name, outcomes)}"
            )
        checked[code] = outcomes[name]
    return checked


def apply_outcome(error: DingTalkError, on_error: Mapping[str, Outcome]) -> None:
    """Raise the exception that gives the task the error's outcome; return for a success.

    :param on_error: the overrides, as :func:`check_on_error` returns them.
    :raises AirflowFailException: the outcome is FAIL.
    :raises AirflowSkipException: the outcome is SKIP.
    :raises DingTalkError: the outcome is RETRY.
    """
    outcome = error.outcome = error.outcome_with(on_error)  # for the retry policy
    error.with_traceback(None)  # a task's log needs no frames of this package
    if outcome is Outcome.FAIL:
        raise AirflowFailException(str(error)) from error
    if outcome is Outcome.SKIP:
        raise AirflowSkipException(str(error)) from error
    if outcome is Outcome.RETRY:
        raise error from error.__cause__


@contextmanager
def task_outcome(on_error: Mapping[str, Outcome | str] | None = None) -> Iterator[None]:
    """End a TaskFlow task in the outcome of the DingTalk error that the block raises.

    .. code-block:: python

        @task
        def lock(conference_id):
            with task_outcome({"confClosed": "fail"}):
                return DingTalkConferenceHook().lock_conference(conference_id)

    :param on_error: outcomes by error code or by the name of an error class; they replace the defaults.
    :raises InvalidInputError: ``on_error`` is invalid.
    :raises AirflowFailException: the outcome of the error is FAIL.
    :raises AirflowSkipException: the outcome of the error is SKIP.
    :raises DingTalkError: the outcome of the error is RETRY.
    """
    checked = check_on_error(on_error)
    try:
        yield
    except DingTalkError as error:
        apply_outcome(error, checked)

"""What becomes of a task: overrides of the outcomes, and the hook in a user's own tasks."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import (
    DingTalkError,
    InvalidConferenceIdError,
    InvalidInputError,
    Outcome,
    ServerError,
    ThrottledError,
)
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.outcomes import check_on_error, outcome_of, task_outcome


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_can_be_written_in_any_case_or_as_itself(outcome: Outcome) -> None:
    for written in (outcome, outcome.value, outcome.name, outcome.name.title()):
        assert check_on_error({"confClosed": written}) == {"confClosed": outcome}
    assert check_on_error(None) == check_on_error({}) == {}


@pytest.mark.parametrize(
    ("on_error", "hint"),
    [
        (
            {"confClose": "fail"},
            "'confClose' is neither a known error code nor an error class; did you mean 'confClosed'?",
        ),
        ({"CONFCLOSED": "fail"}, "did you mean 'confClosed'?"),
        ({"conf_closed": "fail"}, "did you mean 'confClosed'?"),
        ({"QpsLimitForApi": "fail"}, "did you mean 'Forbidden.AccessDenied.QpsLimitForApi'?"),
        ({"xyz": "fail"}, "'xyz' is neither a known error code nor an error class"),
        ({7: "fail"}, "7 is neither a known error code nor an error class"),
        ({None: "fail"}, "None is neither a known error code nor an error class"),
        ({ThrottledError: "fail"}, "did you mean 'ThrottledError'?"),
        ({"ThrotledError": "fail"}, "did you mean 'ThrottledError'?"),
        ({"throttlederror": "fail"}, "did you mean 'ThrottledError'?"),
        ({"ValueError": "fail"}, "'ValueError' is neither a known error code nor an error class"),
        ({"confClosed": "fial"}, "'fial', for confClosed, is not an outcome; did you mean 'fail'?"),
        ({"confClosed": "success"}, "did you mean 'succeed'?"),
        ({"confClosed": "xyz"}, "known are fail, skip, retry, succeed"),
        ({"confClosed": True}, "True, for confClosed, is not an outcome; known are fail, skip, retry"),
        ({"confClosed": None}, "None, for confClosed, is not an outcome"),
        ({"confClosed": ["fail"]}, "is not an outcome; did you mean 'fail'?"),
        (["confClosed"], "expected a dict of outcomes by code or class, got list"),
        ("confClosed", "expected a dict of outcomes by code or class, got str"),
    ],
)
def test_a_misspelt_override_is_an_error_that_names_the_nearest(on_error: Any, hint: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^on_error: ") as caught:
        check_on_error(on_error)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("on_error", "outcome"),
    [
        ({"ThrottledError": "skip"}, Outcome.SKIP),
        ({"TransientError": "skip"}, Outcome.SKIP),
        ({"DingTalkError": "skip"}, Outcome.SKIP),
        ({"DingTalkError": "succeed", "TransientError": "fail", "ThrottledError": "skip"}, Outcome.SKIP),
        ({"ThrottledError": "skip", "90018": "fail"}, Outcome.FAIL),
        ({"ServerError": "skip", "90002": "fail"}, Outcome.RETRY),
    ],
    ids=str,
)
def test_an_override_counts_by_code_then_by_the_nearest_class(on_error: Any, outcome: Outcome) -> None:
    assert outcome_of(ThrottledError("x", code="90018"), check_on_error(on_error)) is outcome
    assert outcome_of(ThrottledError("x"), {"90018": Outcome.FAIL}) is Outcome.RETRY


def lock(conference_id: str, on_error: Any = None) -> Any:
    """Lock a meeting, as the docstring of ``task_outcome`` shows it."""
    with task_outcome(on_error):
        return DingTalkConferenceHook(max_attempts=1).lock_conference(conference_id)


def test_a_users_own_task_ends_as_an_operators_does(conn: Any) -> None:
    assert lock("sandbox-open")["success"]
    with pytest.raises(AirflowSkipException, match="confClosed"):
        lock("sandbox-confClosed")
    with pytest.raises(AirflowFailException, match="noPermission"):
        lock("sandbox-noPermission")
    with pytest.raises(ServerError):
        lock("sandbox-systemError")
    for name in ("noPermission", "RefusedError"):
        assert lock("sandbox-noPermission", {name: "succeed"}) is None


def test_the_cause_of_a_failure_is_kept_with_its_request_id(conn: Any, sandbox: Any) -> None:
    with pytest.raises(AirflowFailException) as caught:
        lock("sandbox-paramsError")
    error = caught.value.__cause__
    assert isinstance(error, DingTalkError)
    assert error.request_id == sandbox.calls[-1].request_id
    assert str(error.request_id) in str(caught.value)
    assert ERRORS["paramsError"].remedy in str(caught.value)


def test_an_invalid_id_or_override_fails_without_a_call(conn: Any, sandbox: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"^conference_id: ") as caught:
        lock("a/b")
    assert isinstance(caught.value.__cause__, InvalidConferenceIdError)
    with pytest.raises(InvalidInputError, match="confClosed"):
        lock("sandbox-open", {"confclosed": "skip"})
    assert sandbox.calls == []


def test_an_error_that_is_not_dingtalks_is_left_alone() -> None:
    with pytest.raises(ZeroDivisionError), task_outcome():
        _ = 1 / 0

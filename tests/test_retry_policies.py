"""Airflow's retries, as DingTalk's errors want them: from Airflow 3.3 on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.exceptions import AirflowFailException

from airflow_provider_dingconf.dingtalk.errors import ERRORS, DingTalkError, Outcome
from airflow_provider_dingconf.operators import LockConferenceOperator

try:
    from airflow.sdk.definitions.retry_policy import RetryPolicy  # noqa: F401
except ImportError:
    HAS_POLICIES = False
else:
    HAS_POLICIES = True

since_3_3 = pytest.mark.skipif(not HAS_POLICIES, reason="Airflow before 3.3 has no retry policies")


def decision(error: BaseException) -> Any:
    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy

    return DingTalkRetryPolicy().evaluate(error, 1, 3)


@pytest.mark.skipif(HAS_POLICIES, reason="this Airflow has retry policies")
def test_an_older_airflow_is_told_what_is_needed() -> None:
    with pytest.raises(ImportError, match=r"needs Airflow 3\.3 or later; this is Airflow \d"):
        import airflow_provider_dingconf.retry_policies  # noqa: F401


@since_3_3
@pytest.mark.parametrize("row", ERRORS.values(), ids=lambda row: row.code)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_is_retried_when_dingtalk_said_or_not_at_all(row: Any, wrapped: bool) -> None:
    error: BaseException = row.error("it went wrong", code=row.code, retry_after=row.wait)
    if wrapped:
        outer = RuntimeError("in a task")
        outer.__cause__ = error
        error = outer
    found = decision(error)
    if row.outcome is not Outcome.RETRY:
        assert found.action.value == "fail"
        assert row.code in found.reason
    elif row.wait is None:
        assert found.action.value == "default"
    else:
        assert (found.action.value, found.retry_delay) == ("retry", timedelta(seconds=row.wait))


@since_3_3
@pytest.mark.parametrize("error", [RuntimeError("x"), AirflowFailException("x")])
def test_an_error_of_something_else_is_left_to_airflow(error: Exception) -> None:
    error.__cause__ = ValueError("y")
    error.__cause__.__cause__ = error  # a circle ends
    assert decision(error).action.value == "default"


@since_3_3
def test_the_operators_have_the_policy_by_default_and_it_survives_serialization() -> None:
    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy

    policy: Any = LockConferenceOperator(task_id="lock", conference_id="1").retry_policy
    assert isinstance(policy, DingTalkRetryPolicy)
    assert isinstance(DingTalkRetryPolicy.deserialize(policy.serialize()), DingTalkRetryPolicy)


def test_the_errors_are_picklable() -> None:
    import pickle

    error = DingTalkError("said", code="confClosed", http_status=400, request_id="R", retry_after=1.5)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), vars(again)) == (type(error), vars(error))

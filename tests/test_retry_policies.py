"""Airflow's retries, as DingTalk's errors want them: from Airflow 3.3 on."""

from __future__ import annotations

import json
import pickle
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowFailException
from airflow.providers.common.compat.sdk import DAG
from runs import connected_sandbox, run_dag

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome, ThrottledError
from airflow_provider_dingconf.operators import (
    DingTalkOperator,
    LockConferenceOperator,
    UnlockConferenceOperator,
    conference_lock,
)
from airflow_provider_dingconf.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy
except ImportError:
    HAS_POLICIES = False
else:
    HAS_POLICIES = True

    class Mine(RetryPolicy):
        """A user's own policy."""

        def evaluate(self, *args: Any, **kwargs: Any) -> RetryDecision:
            return RetryDecision.default()

        def serialize(self) -> dict[str, Any]:
            return {}


since_3_3 = pytest.mark.skipif(not HAS_POLICIES, reason="Airflow before 3.3 has no retry policies")
before_3_3 = pytest.mark.skipif(HAS_POLICIES, reason="this Airflow has retry policies")


def decision(error: BaseException) -> Any:
    return DingTalkRetryPolicy().evaluate(error, 1, 3)


@before_3_3
def test_an_older_airflow_has_no_policy_and_its_import_says_what_is_needed() -> None:
    with pytest.raises(ImportError, match=r"needs Airflow 3\.3 or later; this is Airflow \d"):
        import airflow_provider_dingconf.retry_policies  # noqa: F401
    with DAG("policies", schedule=None):
        lock = LockConferenceOperator(task_id="lock", conference_id="1", retries=2)
        mapped = LockConferenceOperator.partial(task_id="mapped", retries=2).expand(conference_id=["1"])
    assert getattr(lock, "retry_policy", None) is None
    assert (lock.retries, mapped.retries) == (2, 2)


@since_3_3
@pytest.mark.parametrize("row", ERRORS.values(), ids=lambda row: row.code)
def test_a_task_is_retried_when_dingtalk_allows_it_or_not_at_all(row: Any) -> None:
    error = row.error("it went wrong", code=row.code, retry_after=row.wait)
    wrapped = RuntimeError("in a task")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        found = decision(raised)
        if row.outcome is not Outcome.RETRY:
            assert found.action.value == "fail"
            assert row.code in found.reason
        elif row.wait is None:
            assert found.action.value == "default"
        else:
            assert (found.action.value, found.retry_delay) == ("retry", timedelta(seconds=row.wait))


@since_3_3
def test_a_retry_is_a_day_away_at_most() -> None:
    found = decision(ThrottledError("x", retry_after=999_999_999_999.0))
    assert (found.action.value, found.retry_delay) == ("retry", timedelta(days=1))


@since_3_3
@pytest.mark.parametrize("error", [RuntimeError("x"), AirflowFailException("x")])
def test_any_other_error_is_left_to_airflow(error: Exception) -> None:
    error.__cause__ = ValueError("y")
    error.__cause__.__cause__ = error  # a circle ends
    assert decision(error).action.value == "default"


@since_3_3
@pytest.mark.parametrize("operator", [LockConferenceOperator, UnlockConferenceOperator, DingTalkOperator])
def test_the_operators_have_the_policy_by_default_and_mapped_as_well(operator: Any) -> None:
    given, named = {"task_id": "x"}, {"conference_id": "1"}
    if operator is DingTalkOperator:
        given, named = {**given, "method": "GET"}, {"path": "/v1.0/x"}
    with DAG("policies", schedule=None):
        plain = operator(**given, **named)
        mapped = operator.partial(**{**given, "task_id": "y"}).expand(
            **{name: [one] for name, one in named.items()}
        )
    policies = [each.retry_policy for each in (plain, mapped, mapped.unmap(named))]
    assert [type(policy) for policy in policies] == [DingTalkRetryPolicy] * 3


@since_3_3
@pytest.mark.parametrize("policy", ["the user's", None])
def test_a_policy_of_the_users_wins_and_can_be_none(policy: str | None) -> None:
    mine = Mine() if policy else None
    given: dict[str, Any] = {"retry_policy": mine}
    with DAG("policies", schedule=None, default_args=given):
        of_the_dag = LockConferenceOperator(task_id="of_the_dag", conference_id="1")
        mapped = LockConferenceOperator.partial(task_id="mapped").expand(conference_id=["1"])
        with conference_lock("1") as section:
            pass
    with DAG("policies", schedule=None):
        own = LockConferenceOperator(task_id="own", conference_id="1", **given)
        own_mapped = LockConferenceOperator.partial(task_id="m", **given).expand(conference_id=["1"])
        by_default = LockConferenceOperator(task_id="by_default", conference_id="1", default_args=given)
    unmapped = [each.unmap({"conference_id": "1"}) for each in (mapped, own_mapped)]
    tasks: list[Any] = [of_the_dag, *section, own, by_default, *unmapped]
    assert [each.retry_policy for each in tasks] == [mine] * 7


@since_3_3
def test_a_dag_with_the_policy_can_be_serialized() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("policies", schedule=None) as dag:
        LockConferenceOperator(task_id="plain", conference_id="1")
        LockConferenceOperator.partial(task_id="mapped").expand(conference_id=["1"])
        LockConferenceOperator(task_id="without", conference_id="1", retry_policy=None)
    again = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
    has = {task_id: again.get_task(task_id).has_retry_policy for task_id in again.task_ids}
    assert has == {"plain": True, "mapped": True, "without": False}
    kept = json.loads(json.dumps(DingTalkRetryPolicy().serialize()))
    assert isinstance(DingTalkRetryPolicy.deserialize(kept), DingTalkRetryPolicy)


@pytest.mark.parametrize("outcome", [None, Outcome.RETRY])
def test_the_errors_are_picklable(outcome: Outcome | None) -> None:
    error = DingTalkError("said", code="confClosed", http_status=400, request_id="R", retry_after=1.5)
    if outcome:
        error.outcome = outcome
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), vars(again)) == (type(error), vars(error))


# Tasks that Airflow runs

DAG_FILE = """
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.operators import LockConferenceOperator

try:
    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy
except ImportError:  # Airflow before 3.3
    policy = {}
else:
    policy = {"retry_policy": DingTalkRetryPolicy()}


@task(**policy)
def lock(conference_id):
    DingTalkConferenceHook(max_attempts=1).lock_conference(conference_id)


with DAG("retries", schedule=None, default_args={"retries": 1, "retry_delay": timedelta(0)}) as dag:
    lock.override(task_id="hook_ended")("sandbox-confClosed")
    lock.override(task_id="hook_faulty")("sandbox-systemError")
    LockConferenceOperator(
        task_id="wanted", conference_id="sandbox-noPermission", on_error={"noPermission": "retry"}
    )
    LockConferenceOperator.partial(task_id="mapped", max_attempts=1).expand(conference_id=["mapped"])
"""


@pytest.fixture(scope="module")
def tries(airflow_db: None) -> Iterator[dict[str, tuple[str, int]]]:
    """Let Airflow run tasks that fail, and return how each ended and at which try."""
    with connected_sandbox() as sandbox:
        sandbox.create_conference(conference_id="mapped")
        sandbox.fail(Fault(path="/mapped/", times=1, code="systemBusy", headers={"Retry-After": "1"}))
        run = run_dag("retries", DAG_FILE)
        yield {ti.task_id: (str(ti.state), ti.try_number) for ti in run.get_task_instances()}


@pytest.mark.parametrize(
    ("task", "ends"),
    [
        pytest.param(
            "hook_ended", ("failed", 1 if HAS_POLICIES else 2), id="a task with the hook, not if useless"
        ),
        pytest.param("hook_faulty", ("failed", 2), id="a task with the hook, if that may help"),
        pytest.param("mapped", ("success", 2), id="a mapped task"),
        pytest.param("wanted", ("failed", 2), id="a task whose on_error says so"),
    ],
)
def test_airflow_retries(tries: Any, task: str, ends: tuple[str, int]) -> None:
    assert tries[task] == ends

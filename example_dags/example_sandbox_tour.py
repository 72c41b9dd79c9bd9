"""How a lock task can end, tried on the sandbox: success, skip, failure, and success after errors.

After each lock or unlock, a task lets a latecomer try to join the meeting, and fails if the result is not as
expected. The connection ``dingtalk_default`` must lead to a sandbox
(``python -m airflow_provider_dingconf.sandbox``), whose meetings for rehearsals the DAG uses. For a real
meeting, see ``example_lock_conference``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, BaseHook, task

from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

with DAG(
    dag_id="example_sandbox_tour",
    schedule=None,
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def try_to_join(conference_id: str, after: str, expected: str | None, run_id: str | None = None) -> None:
        """Let someone new try to join, and fail unless the sandbox's response is the expected one."""
        import requests

        sandbox = BaseHook.get_connection("dingtalk_default").host
        response = requests.post(
            f"{sandbox}/sandbox/conferences/{conference_id}/join",
            json={"user": f"latecomer after {after} in {run_id}"},
            timeout=10,
        )
        reason = response.json()["reason"]
        print("The latecomer", f"could not join: {reason}." if reason else "joined.")
        if reason != expected:
            raise AirflowFailException(f"Expected {expected or 'to join'}.")

    def latecomer(after: BaseOperator, expected: str | None, rule: str = "all_success") -> BaseOperator:
        """Return the task of a latecomer who comes after a lock or unlock task."""
        joining = try_to_join.override(task_id=f"try_to_join_after_{after.task_id}", trigger_rule=rule)
        return after >> joining(after.conference_id, after.task_id, expected)

    @task
    def work() -> None:
        """Do your work here."""
        print("The doors are closed.")

    lock = LockConferenceOperator(task_id="lock", conference_id="sandbox-open")
    unlock = UnlockConferenceOperator(task_id="unlock", conference_id="sandbox-open")
    latecomer(lock.as_setup(), "locked") >> work() >> unlock.as_teardown(setups=lock)
    latecomer(unlock, None)

    lock_ended = LockConferenceOperator(task_id="lock_ended", conference_id="sandbox-ended")
    latecomer(lock_ended, "ended", rule="all_done")

    lock_forbidden = LockConferenceOperator(task_id="lock_forbidden", conference_id="sandbox-noPermission")
    latecomer(lock_forbidden, None, rule="all_done")

    lock_flaky = LockConferenceOperator(task_id="lock_flaky", conference_id="sandbox-flaky")
    latecomer(lock_flaky, "locked")

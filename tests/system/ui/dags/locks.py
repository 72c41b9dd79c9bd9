"""A task of each outcome, for the browser."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.operators import LockConferenceOperator, conference_lock

with DAG("meeting_locks", schedule=None):

    @task
    def release() -> None:
        """Stand in for what must not be disturbed."""

    with conference_lock("sandbox-open", group_id="release_room"):
        release()

    LockConferenceOperator(task_id="lock_ended", conference_id="sandbox-confClosed")
    LockConferenceOperator(task_id="lock_forbidden", conference_id="sandbox-noPermission")
    LockConferenceOperator.partial(task_id="lock_rooms").expand(
        conference_id=["sandbox-open", "sandbox-flaky", "sandbox-confClosed"]
    )

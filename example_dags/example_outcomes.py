"""How a DingTalk error ends a task, and how to change that with ``on_error``.

By default, a meeting that has ended skips the task, a refusal fails it without a retry, and a fault on
DingTalk's side fails it with Airflow's ``retries``. All tasks but the first override that for some codes.
They only show the states: nothing unlocks a meeting that they lock.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.outcomes import Outcome

with DAG(
    dag_id="example_outcomes",
    schedule=None,
    default_args={
        "conference_id": "{{ params.conference_id }}",
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
    },
    params={
        "conference_id": Param(type="string", minLength=1, description="conferenceId, not the room code")
    },
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):
    by_default = LockConferenceOperator(task_id="by_default")

    # The meeting must be running: if it has ended, the task fails.
    must_be_running = LockConferenceOperator(task_id="must_be_running", on_error={"confClosed": Outcome.FAIL})

    # The lock is optional: the DAG continues if the meeting has ended, and two refusals skip what follows.
    nice_to_have = LockConferenceOperator(
        task_id="nice_to_have",
        on_error={"confClosed": "succeed", "noPermission": "skip", "commandError": "skip"},
    )

    # The meeting may be about to start: commandError may pass, so Airflow retries.
    about_to_start = LockConferenceOperator(task_id="about_to_start", on_error={"commandError": "retry"})

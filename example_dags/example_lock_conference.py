"""Lock a DingTalk meeting while tasks work, and unlock it whatever happens.

To copy: put your own work in place of ``announce``, and trigger the DAG with the meeting's conferenceId. It
needs an Airflow connection ``dingtalk_default``, of type ``dingtalk``.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import conference_lock

with DAG(
    dag_id="example_lock_conference",
    schedule=None,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    params={"conference_id": Param(type="string", minLength=1, description="conferenceId, no room code")},
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def announce() -> None:
        """Do your work here."""
        print("The doors are closed.")

    with conference_lock("{{ params.conference_id }}"):
        announce()

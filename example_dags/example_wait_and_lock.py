"""An exam: wait until the meeting of a room code begins, and lock it while tasks work.

To copy: set the room code. The sensor waits in the triggerer, and holds no worker slot; the sensors of one
connection share their polls.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import conference_lock
from airflow_provider_dingconf.sensors import ConferenceSensor

with DAG(
    dag_id="example_wait_and_lock",
    schedule=None,
    params={"room_code": Param(type="string", description="as DingTalk shows it, spaces and all")},
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def hold_the_exam() -> None:
        """Do your work here."""
        print("The doors are closed.")

    begun = ConferenceSensor(
        task_id="begun",
        room_code="{{ params.room_code }}",
        poke_interval=60,
        timeout=timedelta(hours=8).total_seconds(),
        deferrable=True,
    )
    with conference_lock(begun.output):
        hold_the_exam()

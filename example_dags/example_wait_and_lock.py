"""An exam: wait until the meeting of a room code begins, and lock it.

To copy: set the room code. The sensor waits in the triggerer, and holds no worker slot; the sensors of one
connection share their polls.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.sensors import ConferenceSensor

with DAG(
    dag_id="example_wait_and_lock",
    schedule=None,
    params={"room_code": Param(type="string", description="as DingTalk shows it, spaces and all")},
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):
    begun = ConferenceSensor(
        task_id="begun",
        room_code="{{ params.room_code }}",
        poke_interval=60,
        timeout=timedelta(hours=8).total_seconds(),
        deferrable=True,
    )
    LockConferenceOperator(task_id="lock", conference_id=begun.output)

"""Exam rooms: all meetings of a list are locked when the exam begins, each by one mapped task.

To copy: let ``find_rooms`` return the conferenceIds of your meetings. A meeting that has ended skips its
task and no other. The UI shows each task with the id of its meeting.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import LockConferenceOperator

with DAG(
    dag_id="example_mapped_locks",
    schedule=None,
    params={"conference_ids": Param(type="array", items={"type": "string"}, description="conferenceIds")},
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def find_rooms(params: dict | None = None) -> list[str]:
        """Return the meetings to lock."""
        return (params or {})["conference_ids"]

    @task(trigger_rule="all_done")
    def report(results: list[dict]) -> None:
        """Say which meetings are locked."""
        for result in results:
            print(f"{result['conference_id']} is locked")

    lock = LockConferenceOperator.partial(task_id="lock", max_active_tis_per_dag=16).expand(
        conference_id=find_rooms()
    )
    report(lock.output)

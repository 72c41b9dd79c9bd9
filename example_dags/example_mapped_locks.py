"""Exam rooms: a mapped section for each meeting of a list locks it during the exam.

To copy: let ``find_rooms`` return the conferenceIds of your meetings. A meeting that has ended only skips the
tasks of its section. The UI shows the id of the meeting at each lock.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task, task_group

from airflow_provider_dingconf.operators import conference_lock

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

    @task
    def hold_the_exam(conference_id: str) -> None:
        """Do your work here."""
        print(f"{conference_id} is locked")

    @task_group
    def room(conference_id: str) -> None:
        """Lock, work, unlock."""
        with conference_lock(conference_id, name="room", map_index_template="{{ task.shown_as }}"):
            hold_the_exam(conference_id)

    room.expand(conference_id=find_rooms())

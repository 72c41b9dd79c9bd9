"""A meeting for an incident: create it, tell people where it is, and close it whatever happens.

To copy: put your own tasks in place of ``announce`` and ``repair``. The creator is the host. DingTalk
invites the creator, and the people whose unionIds are in ``invite``.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import conference

with DAG(
    dag_id="example_conference",
    schedule=None,
    params={
        "title": Param("Incident", type="string", minLength=1, description="title of the meeting"),
        "creator_id": Param(type="string", minLength=1, description="unionId of the host"),
    },
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def announce(join_url: str, room_code: str) -> None:
        """Tell the people you need."""
        print(f"Join at {join_url}, or with the room code {room_code}.")

    @task
    def repair() -> None:
        """Do your work here, while the meeting is open."""
        print("Repaired.")

    with conference("{{ params.title }}", creator_id="{{ params.creator_id }}") as section:
        announce(section.join_url, section.room_code) >> repair()

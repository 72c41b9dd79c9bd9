"""An exam: lock the meeting, list its members, and unlock it whatever happens.

To copy: put your own work in place of ``hold_the_exam``, and keep the list where your audit wants it.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import ConferenceMembersOperator, conference_lock

with DAG(
    dag_id="example_exam",
    schedule=None,
    params={"conference_id": Param(type="string", minLength=1, description="conferenceId, no room code")},
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def call_the_roll(members: list[dict]) -> list[str]:
        """Return who is in the meeting; the list also has those who have left it, or never came."""
        present = [one for one in members if one["attend_status"] == 3]
        for one in present:
            print(f"{one['user_nick']} has been here since {one['join_time']}")
        return [one["union_id"] for one in present]

    @task
    def hold_the_exam(candidates: list[str]) -> None:
        """Do your work here."""
        print(f"{len(candidates)} candidates, and the doors are closed.")

    with conference_lock("{{ params.conference_id }}"):
        members = ConferenceMembersOperator(
            task_id="list_members", conference_id="{{ params.conference_id }}"
        )
        hold_the_exam(call_the_roll(members.output))

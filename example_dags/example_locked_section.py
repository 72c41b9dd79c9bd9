"""A section of a DAG during which no one joins the meeting, in one line.

To copy: put your own tasks into the block. The meeting is unlocked whether they succeed, fail or are cleared.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import conference_lock

with DAG(
    dag_id="example_locked_section",
    schedule=None,
    params={
        "conference_id": Param(type="string", minLength=1, description="conferenceId, not the room code")
    },
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def build() -> None:
        """Stand in for the first of the tasks."""
        print("built")

    @task
    def deploy() -> None:
        """Stand in for the last of the tasks."""
        print("deployed")

    with conference_lock("{{ params.conference_id }}", group_id="release_room"):
        build() >> deploy()

"""The hook in your own tasks: a locked block of code, and any other call of DingTalk's API.

To copy: put your own work in place of the ``print``. The meeting is unlocked whatever happens in the block.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

with DAG(
    dag_id="example_taskflow",
    schedule=None,
    params={
        "conference_id": Param(type="string", minLength=1, description="conferenceId, not the room code")
    },
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def who_is_in(params: dict | None = None) -> int:
        """Return how many people are in the meeting."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        conference_id = (params or {})["conference_id"]
        response = DingTalkConferenceHook().call("GET", f"/v1.0/conference/videoConferences/{conference_id}")
        return response["confInfo"]["activeNum"]

    @task
    def release(people: int, params: dict | None = None) -> None:
        """Work while no one can join; an ended meeting skips the task, as it does with the operators."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook
        from airflow_provider_dingconf.outcomes import task_outcome

        with task_outcome(), DingTalkConferenceHook().locked((params or {})["conference_id"]):
            print(f"The doors are closed, with {people} people inside.")

    release(who_is_in())

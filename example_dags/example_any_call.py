"""Five calls that ``DingTalkOperator`` makes: invite people, mute all, record in the cloud, remove people.

To copy: put your own work in place of ``hold_the_exam``, and trigger the DAG with the meeting's conferenceId,
its host and a guest. It needs an Airflow connection ``dingtalk_default``, of type ``dingtalk``.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import DingTalkOperator

MEETING = "/v1.0/conference/videoConferences/{conference_id}"

with DAG(
    dag_id="example_any_call",
    schedule=None,
    default_args={
        "path_params": {"conference_id": "{{ params.conference_id }}"},
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
    },
    params={
        "conference_id": Param(type="string", minLength=1, description="conferenceId, not the room code"),
        "host_id": Param(type="string", minLength=1, description="unionId of the host"),
        "guest_id": Param(type="string", minLength=1, description="unionId of a guest"),
    },
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):
    invite_users = DingTalkOperator(
        task_id="invite_users",
        method="POST",
        path=MEETING + "/users/invite",
        json={
            "inviteeList": [{"nick": "Guest", "unionId": "{{ params.guest_id }}"}],
            "unionId": "{{ params.host_id }}",
        },
        repeatable=False,  # a second invitation rings again
    )

    mute_all = DingTalkOperator(
        task_id="mute_all",
        method="POST",
        path=MEETING + "/allMembers/mute",
        json={"action": "mute", "forceMute": True},
    )

    start_recording = DingTalkOperator(
        task_id="start_recording",
        method="POST",
        path=MEETING + "/cloudRecords/start",
        json={"unionId": "{{ params.host_id }}"},
    )

    @task
    def hold_the_exam() -> None:
        """Do your work here."""
        print("The exam is being recorded.")

    # The setup and the teardown of the exam: the recording stops even if the exam fails.
    stop_recording = DingTalkOperator(
        task_id="stop_recording",
        method="POST",
        path=MEETING + "/cloudRecords/stop",
        json={"unionId": "{{ params.host_id }}"},
    ).as_teardown(setups=start_recording)

    kick_members = DingTalkOperator(
        task_id="kick_members",
        method="POST",
        path=MEETING + "/members/kick",
        json={"forbiddenRejoin": True, "userList": [{"unionId": "{{ params.guest_id }}"}]},
    )

    exam = hold_the_exam()
    invite_users >> mute_all >> start_recording >> exam >> stop_recording
    exam >> kick_members

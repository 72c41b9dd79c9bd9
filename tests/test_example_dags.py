"""The example DAGs are what a user copies: they parse without a murmur, and do what they say."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS
from runs import dag_bag

from airflow_provider_dingconf.sandbox import Fault, Sandbox

EXAMPLES = Path(__file__).parent.parent / "example_dags"
pytestmark = pytest.mark.usefixtures("airflow_db", "conn")

FOR_AIRFLOW_3 = set() if AIRFLOW_V_3_0_PLUS else {"example_lock_when_started"}


def test_every_example_parses_without_errors_and_warnings() -> None:
    sources = {file.stem: file.read_text() for file in EXAMPLES.glob("*.py")}
    bag = dag_bag(sources)
    assert {Path(file).stem for file in bag.import_errors} == FOR_AIRFLOW_3
    assert bag.captured_warnings == {}
    assert set(bag.dags) == set(sources) - FOR_AIRFLOW_3


def dag_of(dag_id: str) -> Any:
    """Return an example as Airflow reads it."""
    return dag_bag({dag_id: (EXAMPLES / f"{dag_id}.py").read_text()}).dags[dag_id]


def run(dag: Any, **conf: Any) -> dict[str, str]:
    """Run an example, by its id, and return how its tasks end: by id, and for mapped ones by index too."""
    dag = dag_of(dag) if isinstance(dag, str) else dag
    for task in dag.tasks:
        if isinstance(getattr(task, "retry_delay", None), timedelta):
            task.retry_delay = timedelta(0)
    done = dag.test(run_conf=conf)
    return {
        ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(ti.state)
        for ti in done.get_task_instances()
    }


def test_the_lock_example_locks_works_and_unlocks(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference("Release")
    assert run("example_lock_conference", conference_id=meeting) == dict.fromkeys(
        ("lock_conference", "announce", "conference_work_done", "unlock_conference"), "success"
    )
    assert [call.json()["action"] for call in sandbox.calls_of("lock", "unlock")] == ["lock", "unlock"]
    assert sandbox.join(meeting, "latecomer")


def test_the_mapped_example_locks_and_unlocks_each_room_by_itself(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    rooms = [sandbox.create_conference() for _ in range(2)]
    states = run("example_mapped_locks", conference_ids=[rooms[0], "sandbox-ended", rooms[1]])
    for task in ("lock_room", "hold_the_exam", "unlock_room"):
        found = [states[f"room.{task}[{index}]"] for index in range(3)]
        assert found == ["success", "skipped", "success"]
    for room in rooms:
        calls = [call.name for call in sandbox.calls_of("lock", "unlock") if call.conference_id == room]
        assert calls == ["lock", "unlock"]
    said = "".join(capfd.readouterr())
    assert [f"{room} is locked" in said for room in (*rooms, "sandbox-ended")] == [True, True, False]


@pytest.mark.parametrize(
    ("conference_id", "states"),
    [
        ("sandbox-ended", ("skipped", "failed", "success", "skipped")),
        ("sandbox-noPermission", ("failed", "failed", "skipped", "failed")),
    ],
)
def test_the_example_of_outcomes_gives_each_task_its_own(conference_id: str, states: tuple[str, ...]) -> None:
    tasks = ("by_default", "must_be_running", "nice_to_have", "about_to_start")
    ended = run("example_outcomes", conference_id=conference_id)
    assert ended == dict(zip(tasks, states, strict=True))


def test_the_taskflow_example_counts_locks_and_unlocks(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    meeting = sandbox.create_conference()
    assert sandbox.join(meeting, "someone")
    assert run("example_taskflow", conference_id=meeting) == dict.fromkeys(
        ("who_is_in", "release"), "success"
    )
    assert "The doors are closed, with 1 people inside." in "".join(capfd.readouterr())
    assert [call.json()["action"] for call in sandbox.calls_of("lock", "unlock")] == ["lock", "unlock"]


def test_the_tour_shows_each_outcome(sandbox: Sandbox) -> None:
    states = run("example_sandbox_tour")
    others = {"lock_ended": "skipped", "lock_forbidden": "failed"}
    assert states == dict.fromkeys(states, "success") | others


def test_the_example_of_all_running_locks_and_unlocks_the_exams_that_have_not_ended(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    exams = {sandbox.create_conference(f"Exam {number}") for number in (1, 2)}
    sandbox.create_conference("Exam 3", status="ended")
    sandbox.create_conference("Lunch")
    ending = sandbox.create_conference("Exam 4")
    sandbox.fail(Fault(call="lock", path=ending, code="confClosed"))
    ids = ("lock_conference", "report", "conference_work_done", "unlock_conference")
    assert run("example_lock_all_running") == dict.fromkeys(ids, "success")
    calls = [(call.name, call.conference_id) for call in sandbox.calls_of("lock", "unlock")]
    assert [name for name, _ in calls] == ["lock"] * 3 + ["unlock"] * 2
    assert {meeting for _, meeting in calls[:3]} == exams | {ending}
    assert {meeting for _, meeting in calls[3:]} == exams
    said = "".join(capfd.readouterr())
    assert all(f"{exam} is locked" in said for exam in exams)
    assert f"{ending} is not locked: confClosed" in said


def test_the_example_of_all_running_leaves_none_locked_if_one_is_refused(sandbox: Sandbox) -> None:
    fine, refused = (sandbox.create_conference(f"Exam {number}") for number in (1, 2))
    sandbox.fail(Fault(call="lock", path=refused, code="noPermission"))
    assert run("example_lock_all_running")["lock_conference"] == "failed"
    assert [call.conference_id for call in sandbox.calls_of("unlock")] == [fine]


def test_the_example_that_waits_locks_the_meeting_of_the_room_code_and_unlocks_it(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference("Exam")
    shown = sandbox.conference(meeting).room_code
    states = run("example_wait_and_lock", room_code=f"{shown[:3]} {shown[3:]}")
    ids = ("begun", "lock_conference", "hold_the_exam", "conference_work_done", "unlock_conference")
    assert states == dict.fromkeys(ids, "success")
    assert [call.conference_id for call in sandbox.calls_of("lock", "unlock")] == [meeting, meeting]
    assert not sandbox.conference(meeting).locked


@pytest.mark.skipif(bool(FOR_AIRFLOW_3), reason="needs Airflow 3")
def test_the_example_of_started_meetings_locks_each_when_its_time_has_come(sandbox: Sandbox) -> None:
    meetings = [sandbox.create_conference(f"Release {number}") for number in (1, 2)]
    ended = sandbox.create_conference("Release 3", status="ended")
    for meeting in meetings:
        sandbox.conference(meeting).start_time = int(time.time() * 1000) - 5 * 60 * 1000  # 5 minutes ago
    dag = dag_of("example_lock_when_started")
    dag.get_task("started").python_callable = lambda: [meetings[0], ended, meetings[1]]
    states = run(dag)
    for task, others in (("wait", "skipped"), ("lock", "skipped")):
        found = [states[f"lock_later.{task}[{index}]"] for index in range(3)]
        assert found == ["success", others, "success"]
    assert [sandbox.conference(meeting).locked for meeting in (*meetings, ended)] == [True, True, False]


def test_the_example_of_an_exam_locks_calls_the_roll_and_unlocks(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    meeting = sandbox.create_conference("Exam")
    for user in ("ann", "bo", "chris"):
        sandbox.join(meeting, user)
    sandbox.leave(meeting, "bo")
    states = run("example_exam", conference_id=meeting)
    assert states == dict.fromkeys(states, "success")
    said = "".join(capfd.readouterr())
    assert "2 candidates, and the doors are closed." in said
    assert [f"{user} has been here since" in said for user in ("ann", "bo", "chris")] == [True, False, True]
    assert [call.name for call in sandbox.calls[1:]] == ["lock", "members", "unlock"]


def test_the_example_of_an_own_meeting_creates_announces_and_closes_it(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    states = run("example_conference", creator_id="chris")
    assert states == dict.fromkeys(states, "success")
    (meeting,) = sandbox.conferences.values()
    assert (meeting.creator_id, meeting.status) == ("chris", "ended")
    assert meeting.title == "Incident"
    assert f"with the room code {meeting.room_code}." in "".join(capfd.readouterr())
    assert [call.name for call in sandbox.calls[1:]] == ["create", "close"]


def test_the_example_of_any_call_invites_mutes_records_and_removes(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference("Exam")
    states = run("example_any_call", conference_id=meeting, host_id="chris", guest_id="ann")
    assert states == dict.fromkeys(states, "success")
    made = [call.path.partition(f"/{meeting}/")[2] for call in sandbox.calls_of("other")]
    assert made[:3] == ["users/invite", "allMembers/mute", "cloudRecords/start"]
    assert set(made[3:]) == {"cloudRecords/stop", "members/kick"}


def test_the_example_of_any_call_stops_the_recording_when_the_work_fails(sandbox: Sandbox) -> None:
    def fail() -> None:
        raise ValueError

    dag = dag_of("example_any_call")
    dag.get_task("hold_the_exam").python_callable = fail
    states = run(dag, conference_id="m", host_id="chris", guest_id="ann")
    assert (states["hold_the_exam"], states["stop_recording"]) == ("failed", "success")
    assert states["kick_members"] == "upstream_failed"
    assert sandbox.calls_of("other")[-1].path.endswith("/cloudRecords/stop")

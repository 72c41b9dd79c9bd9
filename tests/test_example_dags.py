"""The example DAGs are what a user copies: they parse without a murmur, and do what they say."""

from __future__ import annotations

import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.sandbox import Fault, Sandbox

EXAMPLES = Path(__file__).parent.parent / "example_dags"
FOR_AIRFLOW_3 = set() if AIRFLOW_V_3_0_PLUS else {"example_lock_when_started"}


@pytest.fixture
def dag_bag(airflow_db: None) -> Any:
    """Return the examples as Airflow reads them, from its own folder of DAGs."""
    from airflow import settings

    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow before 3.2
        from airflow.models.dagbag import DagBag

    shutil.rmtree(settings.DAGS_FOLDER, ignore_errors=True)  # other tests leave their DAGs there
    shutil.copytree(EXAMPLES, settings.DAGS_FOLDER)
    return DagBag(settings.DAGS_FOLDER)


def test_every_example_parses_without_errors_and_warnings(dag_bag: Any) -> None:
    assert {Path(file).stem for file in dag_bag.import_errors} == FOR_AIRFLOW_3
    assert dag_bag.captured_warnings == {}
    assert set(dag_bag.dags) == {file.stem for file in EXAMPLES.glob("*.py")} - FOR_AIRFLOW_3


def run(dag_bag: Any, dag_id: str, **conf: Any) -> dict[str, str]:
    """Run an example, and return how its tasks end: by id, and for mapped ones by index too."""
    dag = dag_bag.dags[dag_id]
    for task in dag.tasks:
        if isinstance(getattr(task, "retry_delay", None), timedelta):
            task.retry_delay = timedelta(0)
    done = dag.test(run_conf=conf)
    return {
        ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(ti.state)
        for ti in done.get_task_instances()
    }


def test_the_lock_example_locks_works_and_unlocks(dag_bag: Any, sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference("Release")
    assert run(dag_bag, "example_lock_conference", conference_id=meeting) == dict.fromkeys(
        ("lock_conference", "announce", "conference_work_done", "unlock_conference"), "success"
    )
    assert [call.json()["action"] for call in sandbox.calls_of("lock", "unlock")] == ["lock", "unlock"]
    assert sandbox.join(meeting, "latecomer")


def test_the_mapped_example_locks_and_unlocks_each_room_by_itself(
    dag_bag: Any, sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    rooms = [sandbox.create_conference() for _ in range(2)]
    states = run(dag_bag, "example_mapped_locks", conference_ids=[rooms[0], "sandbox-ended", rooms[1]])
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
def test_the_example_of_outcomes_gives_each_task_its_own(
    dag_bag: Any, conn: Any, conference_id: str, states: tuple[str, ...]
) -> None:
    tasks = ("by_default", "must_be_running", "nice_to_have", "about_to_start")
    ended = run(dag_bag, "example_outcomes", conference_id=conference_id)
    assert ended == dict(zip(tasks, states, strict=True))


def test_the_taskflow_example_counts_locks_and_unlocks(
    dag_bag: Any, sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    meeting = sandbox.create_conference()
    assert sandbox.join(meeting, "someone")
    assert run(dag_bag, "example_taskflow", conference_id=meeting) == dict.fromkeys(
        ("who_is_in", "release"), "success"
    )
    assert "The doors are closed, with 1 people inside." in "".join(capfd.readouterr())
    assert [call.json()["action"] for call in sandbox.calls_of("lock", "unlock")] == ["lock", "unlock"]


def test_the_tour_shows_each_outcome(dag_bag: Any, sandbox: Sandbox, conn: Any) -> None:
    states = run(dag_bag, "example_sandbox_tour")
    others = {"lock_ended": "skipped", "lock_forbidden": "failed"}
    assert states == dict.fromkeys(dag_bag.dags["example_sandbox_tour"].task_ids, "success") | others


def test_the_example_of_all_running_locks_and_unlocks_the_exams(
    dag_bag: Any, sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    exams = {sandbox.create_conference(f"Exam {number}") for number in (1, 2)}
    sandbox.create_conference("Exam 3", status="ended")
    sandbox.create_conference("Lunch")
    ids = ("lock_conference", "report", "conference_work_done", "unlock_conference")
    assert run(dag_bag, "example_lock_all_running") == dict.fromkeys(ids, "success")
    calls = [(call.name, call.conference_id) for call in sandbox.calls_of("lock", "unlock")]
    assert [name for name, _ in calls] == ["lock", "lock", "unlock", "unlock"]
    assert {meeting for _, meeting in calls[:2]} == {meeting for _, meeting in calls[2:]} == exams
    said = "".join(capfd.readouterr())
    assert all(f"{exam} is locked" in said for exam in exams)


def test_the_example_of_all_running_says_of_no_ended_meeting_that_it_is_locked(
    dag_bag: Any, sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    fine, ended = (sandbox.create_conference(f"Exam {number}") for number in (1, 2))
    sandbox.fail(Fault(call="lock", path=ended, code="confClosed"))
    assert run(dag_bag, "example_lock_all_running")["report"] == "success"
    said = "".join(capfd.readouterr())
    assert f"{fine} is locked" in said
    assert f"{ended} is not locked: confClosed" in said


def test_the_example_of_all_running_leaves_none_locked_where_one_is_refused(
    dag_bag: Any, sandbox: Sandbox, conn: Any
) -> None:
    fine, refused = (sandbox.create_conference(f"Exam {number}") for number in (1, 2))
    sandbox.fail(Fault(call="lock", path=refused, code="noPermission"))
    assert run(dag_bag, "example_lock_all_running")["lock_conference"] == "failed"
    assert [call.conference_id for call in sandbox.calls_of("unlock")] == [fine]


def test_the_example_that_waits_locks_the_meeting_of_the_room_code_and_unlocks_it(
    dag_bag: Any, sandbox: Sandbox, conn: Any
) -> None:
    meeting = sandbox.create_conference("Exam")
    shown = sandbox.conference(meeting).room_code
    states = run(dag_bag, "example_wait_and_lock", room_code=f"{shown[:3]} {shown[3:]}")
    ids = ("begun", "lock_conference", "hold_the_exam", "conference_work_done", "unlock_conference")
    assert states == dict.fromkeys(ids, "success")
    assert [call.conference_id for call in sandbox.calls_of("lock", "unlock")] == [meeting, meeting]
    assert not sandbox.conference(meeting).locked


@pytest.mark.skipif(bool(FOR_AIRFLOW_3), reason="needs Airflow 3")
def test_the_example_of_started_meetings_locks_each_when_its_time_has_come(
    dag_bag: Any, sandbox: Sandbox, conn: Any
) -> None:
    meetings = [sandbox.create_conference(f"Release {number}") for number in (1, 2)]
    ended = sandbox.create_conference("Release 3", status="ended")
    for meeting in meetings:
        sandbox.conference(meeting).start_time = int(time.time() * 1000) - 5 * 60 * 1000  # 5 minutes ago
    dag = dag_bag.dags["example_lock_when_started"]
    dag.get_task("started").python_callable = lambda: [meetings[0], ended, meetings[1]]
    states = run(dag_bag, dag.dag_id)
    for task, others in (("wait", "skipped"), ("lock", "skipped")):
        found = [states[f"lock_later.{task}[{index}]"] for index in range(3)]
        assert found == ["success", others, "success"]
    assert [sandbox.conference(meeting).locked for meeting in (*meetings, ended)] == [True, True, False]


def test_the_example_of_an_exam_locks_calls_the_roll_and_unlocks(
    dag_bag: Any, sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    meeting = sandbox.create_conference("Exam")
    for user in ("ann", "bo", "chris"):
        sandbox.join(meeting, user)
    sandbox.leave(meeting, "bo")
    states = run(dag_bag, "example_exam", conference_id=meeting)
    assert states == dict.fromkeys(dag_bag.dags["example_exam"].task_ids, "success")
    said = "".join(capfd.readouterr())
    assert "2 candidates, and the doors are closed." in said
    assert [f"{user} has been here since" in said for user in ("ann", "bo", "chris")] == [True, False, True]
    assert [call.name for call in sandbox.calls[1:]] == ["lock", "members", "unlock"]


def test_the_example_of_an_own_meeting_creates_announces_and_closes_it(
    dag_bag: Any, sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    states = run(dag_bag, "example_conference", creator_id="chris")
    assert states == dict.fromkeys(dag_bag.dags["example_conference"].task_ids, "success")
    (meeting,) = sandbox.conferences.values()
    assert (meeting.creator_id, meeting.status) == ("chris", "ended")
    assert meeting.title == "Incident"
    assert f"with the room code {meeting.room_code}." in "".join(capfd.readouterr())
    assert [call.name for call in sandbox.calls[1:]] == ["create", "close"]


def test_the_example_of_any_call_invites_mutes_records_and_removes(
    dag_bag: Any, sandbox: Sandbox, conn: Any
) -> None:
    meeting = sandbox.create_conference("Exam")
    states = run(dag_bag, "example_any_call", conference_id=meeting, host_id="chris", guest_id="ann")
    assert states == dict.fromkeys(dag_bag.dags["example_any_call"].task_ids, "success")
    made = [call.path.partition(f"/{meeting}/")[2] for call in sandbox.calls_of("other")]
    assert made[:3] == ["users/invite", "allMembers/mute", "cloudRecords/start"]
    assert set(made[3:]) == {"cloudRecords/stop", "members/kick"}


def test_the_example_of_any_call_stops_the_recording_when_the_work_fails(
    dag_bag: Any, sandbox: Sandbox, conn: Any
) -> None:
    def fail() -> None:
        raise ValueError

    dag_bag.dags["example_any_call"].get_task("hold_the_exam").python_callable = fail
    states = run(dag_bag, "example_any_call", conference_id="m", host_id="chris", guest_id="ann")
    assert (states["hold_the_exam"], states["stop_recording"]) == ("failed", "success")
    assert states["kick_members"] == "upstream_failed"
    assert sandbox.calls_of("other")[-1].path.endswith("/cloudRecords/stop")

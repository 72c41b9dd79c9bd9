"""The example DAGs are what a user copies: they parse without a warning, and do what they promise."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS
from runs import dag_bag

from airflow_provider_dingconf.sandbox import Fault, Sandbox

EXAMPLES = Path(__file__).parent.parent / "example_dags"
FOR_AIRFLOW_3 = set() if AIRFLOW_V_3_0_PLUS else {"example_lock_when_started"}
pytestmark = pytest.mark.usefixtures("airflow_db", "conn")


def test_every_example_parses_without_errors_and_warnings() -> None:
    sources = {file.stem: file.read_text() for file in EXAMPLES.glob("*.py")}
    bag = dag_bag(sources)
    assert {Path(file).stem for file in bag.import_errors} == FOR_AIRFLOW_3
    assert bag.captured_warnings == {}
    assert set(bag.dags) == set(sources) - FOR_AIRFLOW_3


def run(dag_id: str, work: dict[str, Callable[[], object]] | None = None, **conf: Any) -> dict[str, str]:
    """Run an example and return how its tasks end: by id, and for mapped ones by index too.

    :param work: functions that replace those of tasks.
    """
    dag = dag_bag({dag_id: (EXAMPLES / f"{dag_id}.py").read_text()}).dags[dag_id]
    for task in dag.tasks:
        if isinstance(getattr(task, "retry_delay", None), timedelta):
            task.retry_delay = timedelta(0)
    for task_id, function in (work or {}).items():
        dag.get_task(task_id).python_callable = function
    return {
        ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(ti.state)
        for ti in dag.test(run_conf=conf).get_task_instances()
    }


def all_succeed(states: dict[str, str], *task_ids: str) -> bool:
    """Return whether all tasks succeeded and, if ids are given, are these."""
    return set(states.values()) == {"success"} and (not task_ids or set(states) == set(task_ids))


def calls(sandbox: Sandbox) -> list[tuple[str, str | None]]:
    """Return what was done to which meetings."""
    return [(call.name, call.conference_id) for call in sandbox.calls_of("lock", "unlock")]


def test_the_lock_example_locks_works_and_unlocks(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference("Release")
    states = run("example_lock_conference", conference_id=meeting)
    assert all_succeed(states, "lock_conference", "announce", "conference_work_done", "unlock_conference")
    assert calls(sandbox) == [("lock", meeting), ("unlock", meeting)]
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
        assert [call for call in calls(sandbox) if call[1] == room] == [("lock", room), ("unlock", room)]
    output = "".join(capfd.readouterr())
    assert [f"{room} is locked" in output for room in (*rooms, "sandbox-ended")] == [True, True, False]


@pytest.mark.parametrize(
    ("conference_id", "states"),
    [
        ("sandbox-ended", ("skipped", "failed", "success", "skipped")),
        ("sandbox-noPermission", ("failed", "failed", "skipped", "failed")),
    ],
)
def test_the_example_of_outcomes_shows_what_each_task_makes_of_an_error(
    conference_id: str, states: tuple[str, ...]
) -> None:
    tasks = ("by_default", "must_be_running", "nice_to_have", "about_to_start")
    assert run("example_outcomes", conference_id=conference_id) == dict(zip(tasks, states, strict=True))


def test_the_taskflow_example_counts_locks_and_unlocks(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    meeting = sandbox.create_conference()
    assert sandbox.join(meeting, "someone")
    assert all_succeed(run("example_taskflow", conference_id=meeting), "who_is_in", "release")
    assert "The doors are closed, with 1 people inside." in "".join(capfd.readouterr())
    assert calls(sandbox) == [("lock", meeting), ("unlock", meeting)]


def test_the_tour_shows_each_outcome() -> None:
    states = run("example_sandbox_tour")
    assert (states.pop("lock_ended"), states.pop("lock_forbidden")) == ("skipped", "failed")
    assert all_succeed(states)


def test_the_example_of_all_running_locks_and_unlocks_the_exams_that_have_not_ended(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    exams = {sandbox.create_conference(f"Exam {number}") for number in (1, 2)}
    sandbox.create_conference("Exam 3", status="ended")
    sandbox.create_conference("Lunch")
    ending = sandbox.create_conference("Exam 4")
    sandbox.fail(Fault(call="lock", path=ending, code="confClosed"))
    states = run("example_lock_all_running")
    assert all_succeed(states, "lock_conference", "report", "conference_work_done", "unlock_conference")
    assert set(calls(sandbox)[:3]) == {("lock", exam) for exam in (*exams, ending)}
    assert set(calls(sandbox)[3:]) == {("unlock", exam) for exam in exams}
    output = "".join(capfd.readouterr())
    assert all(f"{exam} is locked" in output for exam in exams)
    assert f"{ending} is not locked: confClosed" in output


def test_the_example_of_all_running_leaves_none_locked_if_one_is_refused(sandbox: Sandbox) -> None:
    fine, refused = (sandbox.create_conference(f"Exam {number}") for number in (1, 2))
    sandbox.fail(Fault(call="lock", path=refused, code="noPermission"))
    assert run("example_lock_all_running")["lock_conference"] == "failed"
    assert calls(sandbox)[2:] == [("unlock", fine)]


def test_the_example_that_waits_locks_the_meeting_of_the_room_code_and_unlocks_it(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference("Exam")
    code = sandbox.conference(meeting).room_code
    states = run("example_wait_and_lock", room_code=f"{code[:3]} {code[3:]}")
    ids = ("begun", "lock_conference", "hold_the_exam", "conference_work_done", "unlock_conference")
    assert all_succeed(states, *ids)
    assert calls(sandbox) == [("lock", meeting), ("unlock", meeting)]


@pytest.mark.skipif(bool(FOR_AIRFLOW_3), reason="needs Airflow 3")
def test_the_example_of_started_meetings_locks_each_when_its_time_has_come(sandbox: Sandbox) -> None:
    first, second = (sandbox.create_conference(f"Release {number}") for number in (1, 2))
    ended = sandbox.create_conference("Release 3", status="ended")
    for meeting in (first, second):
        sandbox.conference(meeting).start_time = int(time.time() * 1000) - 5 * 60 * 1000  # 5 minutes ago
    states = run("example_lock_when_started", {"started": lambda: [first, ended, second]})
    for task in ("wait", "lock"):
        found = [states[f"lock_later.{task}[{index}]"] for index in range(3)]
        assert found == ["success", "skipped", "success"]
    assert [sandbox.conference(each).locked for each in (first, second, ended)] == [True, True, False]


def test_the_example_of_an_exam_locks_calls_the_roll_and_unlocks(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    meeting = sandbox.create_conference("Exam")
    for user in ("ann", "bo", "chris"):
        sandbox.join(meeting, user)
    sandbox.leave(meeting, "bo")
    assert all_succeed(run("example_exam", conference_id=meeting))
    output = "".join(capfd.readouterr())
    assert "2 candidates, and the doors are closed." in output
    assert [f"{user} has been here since" in output for user in ("ann", "bo", "chris")] == [True, False, True]
    assert [call.name for call in sandbox.calls[1:]] == ["lock", "members", "unlock"]


def test_the_example_of_an_own_meeting_creates_announces_and_closes_it(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    assert all_succeed(run("example_conference", creator_id="chris"))
    (meeting,) = sandbox.conferences.values()
    assert (meeting.creator_id, meeting.status, meeting.title) == ("chris", "ended", "Incident")
    assert f"with the room code {meeting.room_code}." in "".join(capfd.readouterr())
    assert [call.name for call in sandbox.calls[1:]] == ["create", "close"]


@pytest.mark.parametrize("works", [True, False], ids=["well", "badly"])
def test_the_example_of_any_call_invites_mutes_records_and_removes_however_the_work_ends(
    sandbox: Sandbox, works: bool
) -> None:
    def fail() -> None:
        raise ValueError

    work = {} if works else {"hold_the_exam": fail}
    states = run("example_any_call", work, conference_id="m", host_id="chris", guest_id="ann")
    made = [call.path.partition("/m/")[2] for call in sandbox.calls_of("other")]
    assert made[:3] == ["users/invite", "allMembers/mute", "cloudRecords/start"]
    if works:
        assert all_succeed(states)
        assert set(made[3:]) == {"cloudRecords/stop", "members/kick"}
    else:
        assert (states["hold_the_exam"], states["stop_recording"]) == ("failed", "success")
        assert states["kick_members"] == "upstream_failed"
        assert made[3:] == ["cloudRecords/stop"]

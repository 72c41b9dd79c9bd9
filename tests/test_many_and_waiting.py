"""Tasks that lock many meetings, and that name one by its room code: in a real Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version
from runs import Ran, connected_sandbox, run_dag

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.links import JoinConferenceLink
from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator
from airflow_provider_dingconf.sandbox import Fault, Sandbox

DAG_FILE = """
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.operators import (
    LockConferenceOperator,
    UnlockConferenceOperator,
    conference_lock,
)

ROOM = "1234567890"

with DAG(
    "many",
    schedule=None,
    default_args={"retries": 3, "retry_delay": timedelta(0), "retry_exponential_backoff": False},
    params={"room": "123 456-7890"},
) as dag:

    @task
    def rooms() -> list[str]:
        return ["from-task-1", "from-task-2"]

    @task
    def work() -> None: ...

    LockConferenceOperator(task_id="by_room_code", room_code="{{ params.room }}")
    LockConferenceOperator(task_id="by_schedule", schedule_conference_id="schedule-1")
    LockConferenceOperator(task_id="none_running", room_code="999")
    LockConferenceOperator(task_id="none_running_skips", room_code="999", on_error={"confNotRunning": "skip"})
    LockConferenceOperator.partial(task_id="mapped").expand(room_code=["2222222222", "333 333-3333"])

    well = LockConferenceOperator(task_id="well", conference_id=["well-1", "well-2"])
    UnlockConferenceOperator(task_id="unlock_well", conference_id=well.output)
    part = LockConferenceOperator(task_id="part", conference_id=["part-1", "sandbox-ended"])
    UnlockConferenceOperator(task_id="unlock_part", conference_id=part.output, trigger_rule="all_done")
    LockConferenceOperator(task_id="of_a_task", conference_id=rooms())
    LockConferenceOperator(task_id="running", running=True, title_pattern="^Exam ")
    LockConferenceOperator(task_id="running_none", running=True, title_pattern="^Nothing")
    LockConferenceOperator(task_id="none", conference_id=[])
    LockConferenceOperator(
        task_id="some_fail",
        conference_id=["fail-1", "sandbox-noPermission", "sandbox-ended", "fail-2"],
        max_attempts=1,
    )
    LockConferenceOperator(task_id="one_ended", conference_id=["ended-1", "sandbox-ended"])
    LockConferenceOperator(task_id="all_ended", conference_id=["sandbox-ended", "sandbox-confClosed"])
    LockConferenceOperator(
        task_id="one_ended_is_none_too_few", conference_id=["sandbox-ended", "ended-3"], on_error={"confClosed": "skip"}
    )
    LockConferenceOperator(task_id="too_many", running=True, title_pattern="^Exam ", max_meetings=1)
    LockConferenceOperator(task_id="dry", running=True, title_pattern="^Dry ", dry_run=True)
    LockConferenceOperator(task_id="filter_of_none", running=True, title_pattern="{{ params.get('title') }}")
    LockConferenceOperator(
        task_id="one_ended_is_fine",
        conference_id=["ended-2", "sandbox-ended"],
        on_error={"confClosed": "succeed"},
    )
    LockConferenceOperator(
        task_id="retried",
        conference_id=["retried-1", "sandbox-flaky", "sandbox-commandError", "retried-2"],
        max_attempts=1,
    )
    LockConferenceOperator(
        task_id="retried_well", conference_id=["again-1", "flaky-2", "again-2"], max_attempts=1
    )
    LockConferenceOperator(task_id="wrong", conference_id=["wrong-1", "a/b"])

    with conference_lock(room_code=ROOM, name="section"):
        work()
"""

HAS_STORE = Version(airflow_version) >= Version("3.3")
"""Whether Airflow keeps the state of a task between its tries."""

MEETINGS = [
    "well-1", "well-2", "from-task-1", "from-task-2", "fail-1", "fail-2", "ended-1", "ended-2", "ended-3", "retried-1",
    "retried-2", "again-1", "again-2", "flaky-2",
    "part-1",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(airflow_db: None) -> Iterator[tuple[Ran, Sandbox]]:
    with connected_sandbox() as sandbox:
        for meeting in MEETINGS:
            sandbox.create_conference(meeting, conference_id=meeting)
        sandbox.create_conference(conference_id="room-now", room_code="1234567890")
        sandbox.create_conference(conference_id="room-2", room_code="2222222222")
        sandbox.create_conference(conference_id="room-3", room_code="3333333333")
        sandbox.create_conference(conference_id="scheduled", schedule_conference_id="schedule-1")
        sandbox.create_conference("Exam 1", conference_id="exam-1")
        sandbox.create_conference("Exam 2", conference_id="exam-2")
        sandbox.create_conference("Dry 1", conference_id="dry-1")
        sandbox.create_conference("Exam 0", conference_id="exam-0", status="ended")
        sandbox.fail(Fault(call="lock", path="/flaky-2/", code="systemError", times=1))
        yield Ran.of(run_dag("many", DAG_FILE), sandbox.calls), sandbox


@pytest.fixture(scope="module")
def ran(world: tuple[Ran, Sandbox]) -> Ran:
    return world[0]


@pytest.fixture(scope="module")
def dingtalk(world: tuple[Ran, Sandbox]) -> Sandbox:
    return world[1]


def locks_of(ran: Ran, meeting: str) -> int:
    return len(ran.calls_of(meeting, "lock"))


def test_a_room_code_is_a_template_and_its_running_meeting_is_locked(ran: Ran, dingtalk: Sandbox) -> None:
    assert ran.state("by_room_code") == "success"
    assert ran.rendered["by_room_code"]["room_code"] == "123 456-7890"
    assert ran.result("by_room_code")["conference_id"] == "room-now"
    assert ran.link("by_room_code", JoinConferenceLink()).endswith("/1234567890")


def test_a_schedule_stands_for_its_running_meeting(ran: Ran) -> None:
    assert ran.result("by_schedule")["conference_id"] == "scheduled"


def test_room_codes_can_be_mapped(ran: Ran, dingtalk: Sandbox) -> None:
    assert {ti.rendered_map_index for (task, _), ti in ran.instances.items() if task == "mapped"} == {
        "2222222222",
        "333 333-3333",
    }
    assert dingtalk.conference("room-3").locked


def test_no_running_meeting_fails_or_what_on_error_says(ran: Ran) -> None:
    assert (ran.state("none_running"), ran.tries("none_running")) == ("failed", 1)
    assert ran.state("none_running_skips") == "skipped"


def test_a_list_is_locked_by_one_task_with_a_result_for_each(ran: Ran) -> None:
    assert ran.state("well") == "success"
    assert ran.result("well") == [
        {
            "conference_id": meeting,
            "action": "lock",
            "success": True,
            "attempts": 1,
            "request_id": None,
            "error": None,
        }
        for meeting in ("well-1", "well-2")
    ]


def test_the_xcom_of_a_lock_says_what_to_unlock(ran: Ran, dingtalk: Sandbox) -> None:
    assert [one["conference_id"] for one in ran.result("unlock_well")] == ["well-1", "well-2"]
    assert not dingtalk.conference("well-1").locked


def test_an_unlock_of_all_done_unlocks_what_a_lock_of_part_has_locked(ran: Ran, dingtalk: Sandbox) -> None:
    assert (ran.state("part"), ran.state("unlock_part")) == ("success", "success")
    assert locks_of(ran, "part-1") == 1
    assert [one["conference_id"] for one in ran.result("unlock_part")] == ["part-1"]
    assert not dingtalk.conference("part-1").locked


def test_the_list_can_be_that_of_a_task(ran: Ran, dingtalk: Sandbox) -> None:
    assert ran.state("of_a_task") == "success"
    assert dingtalk.conference("from-task-2").locked


def test_every_running_meeting_of_a_title_is_locked(ran: Ran, dingtalk: Sandbox) -> None:
    assert [one["conference_id"] for one in ran.result("running")] == ["exam-1", "exam-2"]
    assert dingtalk.conference("exam-2").locked


@pytest.mark.parametrize("task", ["running_none", "none"])
def test_nothing_to_lock_is_a_success(ran: Ran, task: str) -> None:
    assert ran.state(task) == "success"
    assert not ran.result(task)


def test_the_task_fails_when_one_meeting_does_and_the_others_are_locked(ran: Ran, dingtalk: Sandbox) -> None:
    assert (ran.state("some_fail"), ran.tries("some_fail")) == ("failed", 1)
    assert dingtalk.conference("fail-1").locked
    assert dingtalk.conference("fail-2").locked
    told = {one["conference_id"]: one["error"] and one["error"]["code"] for one in ran.result("some_fail")}
    assert told == {
        "fail-1": None,
        "sandbox-noPermission": "noPermission",
        "sandbox-ended": "confClosed",
        "fail-2": None,
    }


def test_an_ended_meeting_of_a_list_is_noted_and_the_task_goes_on(ran: Ran, dingtalk: Sandbox) -> None:
    assert (ran.state("one_ended"), ran.state("one_ended_is_fine")) == ("success", "success")
    assert dingtalk.conference("ended-1").locked
    noted = ran.result("one_ended")[1]
    assert (noted["success"], noted["error"]["code"]) == (False, "confClosed")


def test_a_list_is_skipped_if_all_have_ended_or_if_on_error_says_so(ran: Ran) -> None:
    assert (ran.state("all_ended"), ran.state("one_ended_is_none_too_few")) == ("skipped", "skipped")


def test_more_meetings_than_wanted_or_a_dry_run_lock_nothing(ran: Ran, dingtalk: Sandbox) -> None:
    assert (ran.state("too_many"), ran.tries("too_many")) == ("failed", 1)
    assert locks_of(ran, "exam-1") == 1, "by the task without max_meetings"
    assert [(one["conference_id"], one["success"]) for one in ran.result("dry")] == [("dry-1", False)]
    assert locks_of(ran, "dry-1") == 0


def test_a_filter_that_a_template_renders_to_none_fails_the_task(ran: Ran) -> None:
    assert (ran.state("filter_of_none"), ran.tries("filter_of_none")) == ("failed", 1)


def test_a_retry_asks_only_for_meetings_that_are_not_completed_if_airflow_has_a_store(ran: Ran) -> None:
    # Two failures of the flaky meeting, a success, and then the one that fails for good counts.
    assert (ran.state("retried"), ran.tries("retried")) == ("failed", 3)
    calls = {name: locks_of(ran, name) for name in ("retried-1", "retried-2", "sandbox-flaky")}
    again = 1 if HAS_STORE else 3
    assert calls == {"retried-1": again, "retried-2": again, "sandbox-flaky": 3}
    assert len(ran.result("retried")) == 4


def test_after_a_retry_the_result_holds_every_meeting(ran: Ran) -> None:
    assert (ran.state("retried_well"), ran.tries("retried_well")) == ("success", 2)
    again = 1 if HAS_STORE else 2
    assert {one["conference_id"] for one in ran.result("retried_well")} == {"again-1", "flaky-2", "again-2"}
    assert (locks_of(ran, "again-1"), locks_of(ran, "flaky-2"), locks_of(ran, "again-2")) == (again, 2, again)


def test_a_wrong_id_among_them_fails_before_any_call(ran: Ran) -> None:
    assert (ran.state("wrong"), ran.tries("wrong")) == ("failed", 1)
    assert locks_of(ran, "wrong-1") == 0


def test_a_section_of_a_room_code_unlocks_what_it_has_locked(ran: Ran, dingtalk: Sandbox) -> None:
    assert [ran.state(task) for task in ("lock_section", "work", "unlock_section")] == ["success"] * 3
    assert ran.result("unlock_section")["conference_id"] == "room-now"


# When the DAG is parsed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "conference_id: it is missing; give it or room_code, schedule_conference_id, running"),
        ({"conference_id": "a", "room_code": "1"}, "conference_id and room_code are given"),
        ({"room_code": "1", "running": True}, "room_code and running are given"),
        ({"conference_id": "a", "title_pattern": "x"}, "set running=True"),
        ({"title_pattern": "x"}, "title_pattern: for running meetings only; set running=True"),
        ({"running": True, "concurrency": 0}, "concurrency: 0"),
        ({"running": True, "calls_per_second": -1}, "calls_per_second: -1"),
    ],
)
@pytest.mark.parametrize("operator", [LockConferenceOperator, UnlockConferenceOperator])
def test_parameters_that_contradict_each_other_are_an_error_of_the_dag_file(
    operator: Any, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        operator(task_id="x", **arguments)
    assert said in str(raised.value)

"""A locked section of a DAG: the work runs between a lock and an unlock, and the unlock whatever happens."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.models import TaskInstance
from airflow.providers.common.compat.sdk import DAG, task
from runs import Ran, connected_sandbox, names_of

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError, Outcome
from airflow_provider_dingconf.operators import (
    LockConferenceOperator,
    UnlockConferenceOperator,
    conference_lock,
)
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


# What a section is made of


@pytest.mark.parametrize("group", [None, "section"])
def test_the_work_runs_while_the_meeting_is_locked(group: str | None) -> None:
    prefix = f"{group}." if group else ""
    with DAG("sections", schedule=None) as dag:

        @task
        def work() -> None: ...

        with conference_lock("{{ params.id }}", group_id=group, dingtalk_conn_id="other") as section:
            work()
    assert (section.lock.task_id, section.unlock.task_id) == (
        f"{prefix}lock_conference",
        f"{prefix}unlock_conference",
    )
    assert isinstance(section.lock, LockConferenceOperator)
    assert isinstance(section.unlock, UnlockConferenceOperator)
    assert section.lock.is_setup
    assert section.unlock.is_teardown
    work_done = dag.get_task(f"{prefix}conference_work_done")
    (work_id,) = set(dag.task_ids) - {section.lock.task_id, section.unlock.task_id, work_done.task_id}
    assert section.lock.downstream_task_ids == {work_id, work_done.task_id, section.unlock.task_id}
    assert work_done.upstream_task_ids == {work_id, section.lock.task_id}
    assert section.unlock.upstream_task_ids == {work_done.task_id, section.lock.task_id}
    for end in section:
        assert (end.conference_id, end.dingtalk_conn_id) == ("{{ params.id }}", "other")


def test_two_sections_of_a_dag_have_names_of_their_own() -> None:
    with DAG("sections", schedule=None) as dag:
        for name in ("first", "second"):
            with conference_lock("1", name=name):
                task(task_id=f"work_{name}")(lambda: None)()
    assert {"lock_first", "unlock_first", "lock_second", "unlock_second"} < set(dag.task_ids)


def test_every_other_parameter_reaches_both_ends() -> None:
    with (
        DAG("sections", schedule=None),
        conference_lock(
            "1",
            on_error={"confClosed": "fail"},
            max_attempts=2,
            max_seconds=7,
            retries=4,
            execution_timeout=timedelta(minutes=1),
        ) as section,
    ):
        pass
    for end in section:
        assert end.on_error == {"confClosed": Outcome.FAIL}
        assert (end.max_attempts, end.max_seconds) == (2, 7)
        assert (end.retries, end.execution_timeout) == (4, timedelta(minutes=1))


def test_default_args_reach_both_ends_and_what_the_section_says_wins() -> None:
    default_args = {
        "dingtalk_conn_id": "of-the-dag",
        "on_error": {"confClosed": "succeed"},
        "max_attempts": 3,
        "concurrency": 3,
    }
    with (
        DAG("sections", schedule=None, default_args=default_args),
        conference_lock("1", retries=6) as section,
    ):
        pass
    for end in section:
        assert (end.dingtalk_conn_id, end.max_attempts) == ("of-the-dag", 3)
        assert end.on_error == {"confClosed": Outcome.SUCCEED}
        assert (end.concurrency, end.retries) == (3, 6)


def test_a_lost_worker_costs_a_section_a_try_whatever_the_dag_says_of_retries() -> None:
    seconds = timedelta(seconds=10)
    with (
        DAG("sections", schedule=None, default_args={"retries": 0, "retry_delay": timedelta(hours=1)}),
        conference_lock("1") as section,
        conference_lock("2", name="own", retries=1, retry_delay=timedelta(0)) as own,
        conference_lock("3", name="of_args", default_args={"retries": 7}) as of_args,
    ):
        pass
    assert [(end.retries, end.retry_delay) for end in section] == [(2, seconds), (5, seconds)]
    assert [(end.retries, end.retry_delay) for end in own] == [(1, timedelta(0))] * 2
    assert [(end.retries, end.retry_delay) for end in of_args] == [(7, seconds)] * 2


def test_the_retries_of_an_unlock_outlast_an_address_ban_unless_their_delay_is_given() -> None:
    with (
        DAG("sections", schedule=None),
        conference_lock("1") as section,
        conference_lock("2", name="own", retry_delay=timedelta(seconds=1)) as own,
    ):
        pass

    def waited(task: Any) -> timedelta:
        began = datetime(2026, 1, 1, tzinfo=timezone.utc)
        facts = {
            "task_id": task.task_id,
            "dag_id": "sections",
            "logical_date": began,
            "execution_date": began,
        }
        tries = [
            SimpleNamespace(task=task, try_number=number, end_date=began, retry_delay_override=None, **facts)
            for number in range(1, task.retries + 1)
        ]
        return sum((TaskInstance.next_retry_datetime(one) - began for one in tries), timedelta(0))

    assert timedelta(seconds=300) < waited(section.unlock) <= timedelta(seconds=620)
    assert waited(own.unlock) == timedelta(seconds=5)


def test_a_task_after_an_inner_section_is_inside_the_outer_one() -> None:
    with DAG("sections", schedule=None) as dag:
        before = task(task_id="before")(lambda: "x")()
        with conference_lock("1", name="outer") as outer:
            with conference_lock("2", name="inner") as inner:
                task(task_id="work")(lambda: None)()
            task(task_id="after_inner")(lambda: None)()
            task(task_id="needs_before")(lambda value: None)(before)
    for name in ("after_inner", "needs_before"):
        assert outer.lock.task_id in dag.get_task(name).upstream_task_ids
        assert dag.get_task(name).downstream_task_ids == {"outer_work_done"}
    assert outer.lock.task_id in inner.lock.upstream_task_ids
    assert inner.unlock.downstream_task_ids == {"outer_work_done"}
    assert "lock_outer" not in dag.get_task("work").upstream_task_ids, "the inner lock waits for it"


def test_a_section_of_a_room_code_pushes_the_xcom_that_its_unlock_needs_whatever_do_xcom_push_says() -> None:
    with (
        DAG("sections", schedule=None, default_args={"do_xcom_push": False}),
        conference_lock(room_code="123") as by_room,
        conference_lock("1", name="by_id") as by_id,
    ):
        pass
    assert (by_room.lock.do_xcom_push, by_id.lock.do_xcom_push) == (True, False)


MISTAKES: dict[str, dict[str, Any]] = {
    "did you mean 'confClosed'": {"on_error": {"confClosd": "fail"}},
    "did you mean 'succeed'": {"on_error": {"confClosed": "succed"}},
    "max_attempts": {"max_attempts": 0},
    "max_seconds": {"max_seconds": -1},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_an_error_when_the_dag_is_parsed(said: str) -> None:
    with DAG("sections", schedule=None):
        with pytest.raises(InvalidInputError, match=said), conference_lock("1", **MISTAKES[said]):
            pass
        with pytest.raises(InvalidInputError, match=said):
            LockConferenceOperator.partial(task_id="lock", **MISTAKES[said])


# What becomes of it


def run(dag: DAG, sandbox: Sandbox) -> Ran:
    """Let Airflow run a DAG to its end."""
    return Ran.of(dag.test(), sandbox.calls)


# Work that only has to succeed is an EmptyOperator, for which Airflow starts no task.
DAG_FILE = """
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, task

from airflow_provider_dingconf.operators import *

try:
    from airflow.providers.standard.operators.empty import EmptyOperator
except ImportError:  # Airflow 2
    from airflow.operators.empty import EmptyOperator


@task
def fail():
    raise AirflowFailException("the work failed")


@task
def skip():
    raise AirflowSkipException("nothing to do")


@task
def find():
    return "found"


with DAG("sections", schedule=None, params={"meeting": "skips"}) as sections:
    with conference_lock(find(), name="found") as section:
        work = EmptyOperator(task_id="work_found")
    work >> EmptyOperator(task_id="after")
    with conference_lock("outer", name="outer"):
        with conference_lock("inner", group_id="group", retries=1, retry_delay=timedelta(0)):
            EmptyOperator(task_id="work") >> fail.override(task_id="more_work")()
    with conference_lock("{{ params.meeting }}", name="skips"):
        skip.override(task_id="work_skips")()
    with conference_lock("sandbox-confClosed", name="closed"):
        EmptyOperator(task_id="work_closed")
    with conference_lock("sandbox-confClosed", name="tolerant", on_error={"confClosed": "succeed"}):
        EmptyOperator(task_id="work_tolerant")
    with conference_lock("refused", name="refused"):
        EmptyOperator(task_id="work_refused")
    meetings = ["mapped-1", "mapped-2"]
    lock = LockConferenceOperator.partial(task_id="lock_mapped").expand(conference_id=meetings)
    unlock = UnlockConferenceOperator.partial(task_id="unlock_mapped").expand(conference_id=meetings)
    lock.as_setup() >> fail.override(task_id="work_mapped")() >> unlock.as_teardown(setups=lock)

with DAG("locked_release", schedule=None) as release, conference_lock("release"):
    EmptyOperator(task_id="work")

with DAG("broken", schedule=None) as broken, conference_lock("release"):
    fail.override(task_id="work")()

with DAG("short_circuit", schedule=None) as short_circuit, conference_lock("release", retries=0):
    task.short_circuit(task_id="ask")(lambda: False)() >> EmptyOperator(task_id="work")

FAIL_FAST = "fail_fast" if hasattr(DAG("x", schedule=None), "fail_fast") else "fail_stop"
with DAG("fast", schedule=None, **{FAIL_FAST: True}) as fast, conference_lock("release", retries=0):
    EmptyOperator(task_id="work")

with DAG("broken_fast", schedule=None, **{FAIL_FAST: True}) as broken_fast:
    with conference_lock("release", retries=0):
        fail.override(task_id="work")() >> EmptyOperator(task_id="more_work")


def raises(context, result=None):
    raise RuntimeError("after execute")


def skips(context, result=None):
    raise AirflowSkipException("after execute")


with DAG("late", schedule=None, default_args={"retry_delay": timedelta(0)}) as late:
    with conference_lock("late-1", name="one", post_execute=raises, retries=1, retry_delay=timedelta(0)):
        EmptyOperator(task_id="work_one")
    with conference_lock(["late-2", "late-3"], name="many", multiple_outputs=True, retries=0):
        EmptyOperator(task_id="work_many")
    with conference_lock(room_code="1234567890", name="skipped", post_execute=skips):
        EmptyOperator(task_id="work_skipped")

with DAG("broken_group", schedule=None) as broken_group:
    with conference_lock("release", group_id="group"):
        fail.override(task_id="work")()
"""


@pytest.fixture(scope="module")
def dags(airflow_db: None) -> dict[str, Any]:
    """Return the DAGs of a file in Airflow's folder of DAGs."""
    return names_of(DAG_FILE, "sections")


MEETINGS = ("found", "skips", "refused", "outer", "inner", "mapped-1", "mapped-2")


@pytest.fixture(scope="module")
def ran(dags: dict[str, Any]) -> Iterator[Ran]:
    """Run the DAG of all sections once."""
    with connected_sandbox() as sandbox:
        for meeting in MEETINGS:
            sandbox.create_conference(conference_id=meeting)
        sandbox.fail(Fault(call="lock", path="/refused/", code="noPermission"))
        yield run(dags["sections"], sandbox)


def test_a_section_locks_works_and_unlocks_a_meeting_that_a_task_before_found(ran: Ran) -> None:
    assert ran.states("find", "lock_found", "work_found", "unlock_found") == ["success"] * 4
    assert ran.actions("found") == ["lock", "unlock"]


def test_the_dag_goes_on_after_a_section(ran: Ran) -> None:
    assert ran.states("after") == ["success"]


def test_the_meetings_of_a_section_inside_a_section_are_unlocked_when_the_work_fails(ran: Ran) -> None:
    assert ran.states("group.work", "group.more_work") == ["success", "failed"]
    assert ran.states("group.unlock_conference", "unlock_outer") == ["success", "success"]
    done = [(call.name, call.conference_id) for call in ran.calls if call.conference_id in {"outer", "inner"}]
    assert done == [("lock", "outer"), ("lock", "inner"), ("unlock", "inner"), ("unlock", "outer")]


def test_the_meeting_is_unlocked_when_the_work_is_skipped_and_its_id_is_a_template(ran: Ran) -> None:
    assert ran.states("lock_skips", "work_skips", "unlock_skips") == ["success", "skipped", "success"]
    assert ran.actions("skips") == ["lock", "unlock"]


def test_nothing_is_done_for_a_meeting_that_has_ended(ran: Ran) -> None:
    assert ran.states("lock_closed", "work_closed", "unlock_closed") == ["skipped"] * 3


def test_on_error_lets_the_work_be_done_nevertheless_and_reaches_the_unlock(ran: Ran) -> None:
    assert ran.states("lock_tolerant", "work_tolerant", "unlock_tolerant") == ["success"] * 3
    assert ran.actions("sandbox-confClosed") in (["lock", "lock", "unlock"], ["lock", "unlock", "lock"])


def test_no_work_is_done_when_the_lock_is_refused(ran: Ran) -> None:
    assert ran.states("lock_refused", "work_refused", "unlock_refused") == [
        "failed", "upstream_failed", "upstream_failed"
    ]  # fmt: skip
    assert ran.actions("refused") == ["lock"]


def test_many_meetings_are_locked_and_unlocked_around_work_that_fails(ran: Ran) -> None:
    assert ran.states("work_mapped") == ["failed"]
    for index, meeting in enumerate(("mapped-1", "mapped-2")):
        assert ran.actions(meeting) == ["lock", "unlock"]
        for name in ("lock_mapped", "unlock_mapped"):
            instance = ran.instances[name, index]
            assert (str(instance.state), instance.rendered_map_index) == ("success", meeting)


@pytest.mark.parametrize(("name", "prefix"), [("broken", ""), ("broken_group", "group.")])
def test_work_that_fails_fails_the_run_although_the_unlock_succeeds(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any, name: str, prefix: str
) -> None:
    sandbox.create_conference(conference_id="release")
    ran = run(dags[name], sandbox)
    assert ran.states(f"{prefix}work", f"{prefix}unlock_conference") == ["failed", "success"]
    assert ran.run_state == "failed"
    assert sandbox.join("release", "latecomer")


@pytest.mark.parametrize(("unlocks", "state"), [(True, "success"), (False, "failed")])
def test_a_meeting_that_stays_locked_fails_the_run(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any, unlocks: bool, state: str
) -> None:
    sandbox.create_conference(conference_id="release")
    if not unlocks:
        sandbox.fail(Fault(call="unlock", code="noPermission"))
    ran = run(dags["release"], sandbox)
    assert ran.states("lock_conference", "work", "unlock_conference") == ["success", "success", state]
    assert ran.run_state == state
    assert sandbox.join("release", "latecomer") is unlocks


@pytest.mark.parametrize(("unlocks", "state"), [(True, "success"), (False, "failed")])
@pytest.mark.parametrize("name", ["short_circuit", "fast"])
def test_a_failed_unlock_fails_the_run_after_a_short_circuit_and_in_a_dag_that_fails_fast(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any, name: str, unlocks: bool, state: str
) -> None:
    sandbox.create_conference(conference_id="release")
    if not unlocks:
        sandbox.fail(Fault(call="unlock", code="noPermission"))
    ran = run(dags[name], sandbox)
    assert ran.states("unlock_conference") == [state]
    assert ran.run_state == state


def test_work_that_fails_in_a_dag_that_fails_fast_fails_the_run_and_is_unlocked(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any
) -> None:
    sandbox.create_conference(conference_id="release")
    ran = run(dags["broken_fast"], sandbox)
    assert ran.states("work", "unlock_conference") == ["failed", "success"]
    assert sandbox.join("release", "latecomer")


def test_a_lock_that_airflow_fails_or_skips_after_its_execute_leaves_nothing_locked(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any
) -> None:
    for meeting in ("late-1", "late-2", "late-3"):
        sandbox.create_conference(conference_id=meeting)
    sandbox.create_conference(conference_id="late-4", room_code="1234567890")
    ran = run(dags["late"], sandbox)
    assert ran.states("lock_one", "lock_many", "lock_skipped") == ["failed", "failed", "skipped"]
    assert ran.actions("late-1") == ["lock", "unlock"] * 2, "each try rolls back"
    for meeting in ("late-2", "late-3", "late-4"):
        assert ran.actions(meeting) == ["lock", "unlock"]
    assert not any(sandbox.conference(f"late-{number}").locked for number in (1, 2, 3, 4))

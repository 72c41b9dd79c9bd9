"""A locked section of a DAG: the work runs between a lock and an unlock, and the unlock however it ends."""

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
    conference,
    conference_lock,
)
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# What a section is made of


@pytest.mark.parametrize("group", [None, "section"])
def test_the_work_runs_while_the_meeting_is_locked(group: str | None) -> None:
    prefix = f"{group}." if group else ""
    with DAG("sections", schedule=None) as dag:
        with conference_lock("{{ params.id }}", group_id=group, dingtalk_conn_id="other") as section:
            task(task_id="work")(lambda: None)()
        with conference_lock("1", name="second"):
            pass
    lock, unlock = section
    assert isinstance(lock, LockConferenceOperator)
    assert isinstance(unlock, UnlockConferenceOperator)
    work, work_done = f"{prefix}work", f"{prefix}conference_work_done"
    second = {"lock_second", "unlock_second", "second_work_done"}
    assert set(dag.task_ids) - second == {lock.task_id, unlock.task_id, work, work_done}
    assert (lock.task_id, unlock.task_id) == (f"{prefix}lock_conference", f"{prefix}unlock_conference")
    assert lock.is_setup
    assert unlock.is_teardown
    assert lock.downstream_task_ids == {work, work_done, unlock.task_id}
    assert dag.get_task(work_done).upstream_task_ids == {work, lock.task_id}
    assert unlock.upstream_task_ids == {work_done, lock.task_id}
    for end in section:
        assert (end.conference_id, end.dingtalk_conn_id) == ("{{ params.id }}", "other")


@pytest.mark.parametrize("whose", ["the section's", "its default_args", "the DAG's"])
def test_both_ends_take_their_parameters_from_the_section_or_the_dag(whose: str) -> None:
    given = {
        "dingtalk_conn_id": "other",
        "on_error": {"confClosed": "succeed"},
        "max_attempts": 2,
        "max_seconds": 7,
        "concurrency": 3,
        "execution_timeout": timedelta(minutes=1),
    }
    arguments = {"the section's": given, "its default_args": {"default_args": given}}.get(whose, {})
    with (
        DAG("sections", schedule=None, default_args={"max_attempts": 9} if arguments else given),
        conference_lock("1", retries=6, **arguments) as section,
    ):
        pass
    for end in section:
        assert end.on_error == {"confClosed": Outcome.SUCCEED}
        assert (end.dingtalk_conn_id, end.max_attempts, end.max_seconds) == ("other", 2, 7)
        assert (end.concurrency, end.execution_timeout) == (3, timedelta(minutes=1))
        assert end.retries == 6


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
        DAG("sections", schedule=None, default_args={"max_retry_delay": timedelta(minutes=1)}),
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


@pytest.mark.parametrize("whose", ["the DAG's", "its default_args"])
@pytest.mark.parametrize(
    "named",
    [{"room_code": "123"}, {"running": True, "title_pattern": "^Exam", "creator_id": "chris"}],
    ids=["room code", "running"],
)
def test_the_unlock_takes_the_meetings_of_the_lock_also_if_default_args_name_them(
    whose: str, named: dict[str, Any]
) -> None:
    own = {} if whose == "the DAG's" else {"default_args": named}
    with DAG("sections", schedule=None, default_args={} if own else named), conference_lock(**own) as section:
        pass
    assert {name: getattr(section.lock, name) for name in named} == named
    assert section.unlock.named_by == "conference_id"
    assert "lock_conference" in str(section.unlock.conference_id)


def test_the_unlock_of_meetings_that_other_sections_create_depends_on_the_lock_alone() -> None:
    with (
        DAG("sections", schedule=None),
        conference("A", "chris", name="a") as one,
        conference("B", "chris", name="b") as two,
        conference_lock([one.conference_id, two.conference_id], name="both") as section,
    ):
        pass
    assert section.lock.upstream_task_ids == {"create_a", "create_b"}
    assert section.unlock.upstream_task_ids == {"lock_both", "both_work_done"}


def test_what_ends_a_section_does_not_wait_for_earlier_runs() -> None:
    waits = {"depends_on_past": True, "wait_for_downstream": True}
    with (
        DAG("sections", schedule=None, default_args=waits) as dag,
        conference("Exam", "chris", name="exam", lock=True),
    ):
        pass
    waiting = {each.task_id for each in dag.tasks if each.depends_on_past or each.wait_for_downstream}
    assert waiting == {"create_exam", "lock_exam"}


def test_a_mistake_is_an_error_when_the_dag_is_parsed() -> None:
    with (
        DAG("sections", schedule=None),
        pytest.raises(InvalidInputError, match="did you mean 'confClosed'"),
        conference_lock("1", on_error={"confClosd": "fail"}),
    ):
        pass


# Sections that Airflow runs

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

with DAG("broken_group", schedule=None) as broken_group:
    with conference_lock("release", group_id="group"):
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
        yield Ran.of(dags["sections"].test(), sandbox)


def test_a_section_locks_works_and_unlocks_a_meeting_that_a_task_before_found(ran: Ran) -> None:
    assert ran.states("find", "lock_found", "work_found", "unlock_found", "after") == ["success"] * 5
    assert ran.actions("found") == ["lock", "unlock"]


def test_the_meetings_of_a_section_inside_a_section_are_unlocked_when_the_work_fails(ran: Ran) -> None:
    assert ran.states("group.work", "group.more_work") == ["success", "failed"]
    assert ran.states("group.unlock_conference", "unlock_outer") == ["success", "success"]
    done = [(call.name, call.conference_id) for call in ran.calls if call.conference_id in {"outer", "inner"}]
    assert done == [("lock", "outer"), ("lock", "inner"), ("unlock", "inner"), ("unlock", "outer")]


def test_the_meeting_is_unlocked_when_the_work_is_skipped_and_its_id_is_a_template(ran: Ran) -> None:
    assert ran.states("lock_skips", "work_skips", "unlock_skips") == ["success", "skipped", "success"]
    assert ran.actions("skips") == ["lock", "unlock"]


def test_no_work_is_done_for_a_meeting_that_has_ended_unless_on_error_says_so(ran: Ran) -> None:
    assert ran.states("lock_closed", "work_closed", "unlock_closed") == ["skipped"] * 3
    assert ran.states("lock_tolerant", "work_tolerant", "unlock_tolerant") == ["success"] * 3
    assert sorted(ran.actions("sandbox-confClosed")) == ["lock", "lock", "unlock"]


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


@pytest.fixture
def run(dags: dict[str, Any], sandbox: Sandbox, conn: Any) -> Callable[..., Ran]:
    """Return what lets Airflow run a DAG with the meeting ``release``, which may refuse to be unlocked."""

    def run(name: str, *, unlocks: bool = True) -> Ran:
        sandbox.create_conference(conference_id="release")
        if not unlocks:
            sandbox.fail(Fault(call="unlock", code="noPermission"))
        return Ran.of(dags[name].test(), sandbox)

    return run


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        pytest.param("broken", "", id="in a DAG"),
        pytest.param("broken_group", "group.", id="in a group"),
        pytest.param("broken_fast", "", id="in a DAG that fails fast"),
    ],
)
def test_work_that_fails_fails_the_run_and_the_meeting_is_unlocked(
    run: Callable[..., Ran], sandbox: Sandbox, name: str, prefix: str
) -> None:
    ran = run(name)
    assert ran.states(f"{prefix}work", f"{prefix}unlock_conference") == ["failed", "success"]
    if name != "broken_fast":  # there Airflow skips the work after it, which is the last of the run
        assert ran.run_state == "failed"
    assert sandbox.join("release", "latecomer")


@pytest.mark.parametrize(("unlocks", "state"), [(True, "success"), (False, "failed")])
def test_a_meeting_that_stays_locked_fails_the_run(
    run: Callable[..., Ran], sandbox: Sandbox, unlocks: bool, state: str
) -> None:
    ran = run("release", unlocks=unlocks)
    assert ran.states("lock_conference", "work", "unlock_conference") == ["success", "success", state]
    assert ran.run_state == state
    assert sandbox.join("release", "latecomer") is unlocks


@pytest.mark.parametrize(("unlocks", "state"), [(True, "success"), (False, "failed")])
@pytest.mark.parametrize("name", ["short_circuit", "fast"])
def test_a_failed_unlock_fails_the_run_after_a_short_circuit_and_in_a_dag_that_fails_fast(
    run: Callable[..., Ran], name: str, unlocks: bool, state: str
) -> None:
    ran = run(name, unlocks=unlocks)
    assert ran.states("unlock_conference") == [state]
    assert ran.run_state == state


def test_a_lock_that_airflow_fails_or_skips_after_its_execute_leaves_nothing_locked(
    run: Callable[..., Ran], sandbox: Sandbox
) -> None:
    for meeting in ("late-1", "late-2", "late-3"):
        sandbox.create_conference(conference_id=meeting)
    sandbox.create_conference(conference_id="late-4", room_code="1234567890")
    ran = run("late")
    assert ran.states("lock_one", "lock_many", "lock_skipped") == ["failed", "failed", "skipped"]
    assert ran.actions("late-1") == ["lock", "unlock"] * 2, "each try rolls back"
    for meeting in ("late-2", "late-3", "late-4"):
        assert ran.actions(meeting) == ["lock", "unlock"]
    assert not any(sandbox.conference(f"late-{number}").locked for number in (1, 2, 3, 4))

"""A section with its own meeting: it is created before the work, and closed however the work ends."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task
from runs import Ran, names_of

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError, Outcome
from airflow_provider_dingconf.links import JoinConferenceLink
from airflow_provider_dingconf.operators import (
    CloseConferenceOperator,
    CreateConferenceOperator,
    LockConferenceOperator,
    UnlockConferenceOperator,
    conference,
    conference_lock,
)
from airflow_provider_dingconf.sandbox import Fault, Sandbox

# What a section is made of


@pytest.mark.parametrize("group", [None, "section"])
def test_the_work_runs_while_the_meeting_is_open(group: str | None) -> None:
    prefix = f"{group}." if group else ""
    with (
        DAG("sections", schedule=None) as dag,
        conference("Exam", "chris", group_id=group, dingtalk_conn_id="other") as section,
    ):
        task(task_id="work")(lambda conference_id: None)(section.conference_id)
        task(task_id="more_work")(lambda: None)()
    assert isinstance(section.create, CreateConferenceOperator)
    assert isinstance(section.close, CloseConferenceOperator)
    assert (section.lock, section.unlock) == (None, None)
    assert section.create.is_setup
    assert section.close.is_teardown
    inside = {f"{prefix}work", f"{prefix}more_work"}
    around = {f"{prefix}{name}" for name in ("create_conference", "close_conference", "conference_done")}
    assert set(dag.task_ids) == inside | around
    for each in inside:
        assert dag.get_task(each).upstream_task_ids == {section.create.task_id}
        assert dag.get_task(each).downstream_task_ids == {f"{prefix}conference_done"}
    for each in (section.create, section.close):
        assert (each.creator_id, each.dingtalk_conn_id) == ("chris", "other")


@pytest.mark.parametrize("lock", [True, False], ids=["lock=True", "conference_lock"])
def test_a_locked_section_locks_after_the_create_and_unlocks_before_the_close(lock: bool) -> None:
    with (
        DAG("sections", schedule=None) as dag,
        conference("Exam", "chris", lock=lock, name="exam") as own,
        nullcontext(own) if lock else conference_lock(own.conference_id, name="exam") as locked,
    ):
        task(task_id="work")(lambda: None)()
    assert isinstance(locked.lock, LockConferenceOperator)
    assert isinstance(locked.unlock, UnlockConferenceOperator)
    assert locked.lock.upstream_task_ids == {"create_exam"}
    assert dag.get_task("work").upstream_task_ids == {"lock_exam"}
    assert locked.unlock.upstream_task_ids == {"lock_exam", "exam_work_done"}, "it depends on its lock alone"
    assert locked.unlock.downstream_task_ids == {"exam_done"}
    assert {"exam_done", "create_exam"} <= own.close.upstream_task_ids


def test_a_create_is_not_retried_and_the_rest_is_whatever_the_dag_says_of_retries() -> None:
    with (
        DAG("sections", schedule=None, default_args={"retries": 3, "retry_delay": timedelta(hours=1)}),
        conference("Exam", "chris", lock=True) as section,
        conference("Exam", "chris", lock=True, name="own", retries=1, retry_delay=timedelta(0)) as own,
    ):
        pass
    seconds = timedelta(seconds=10)
    retries = [(each.retries, each.retry_delay) for each in section if each is not None]
    assert retries == [(0, seconds), (5, seconds), (2, seconds), (5, seconds)]
    assert [(each.retries, each.retry_delay) for each in own if each is not None] == [(1, timedelta(0))] * 4


NO_XCOMS = {"do_xcom_push": False, "multiple_outputs": False}


def test_parameters_reach_all_tasks_of_a_section_and_the_xcom_they_need_is_pushed() -> None:
    with (
        DAG("sections", schedule=None, default_args={**NO_XCOMS, "max_seconds": 7}),
        conference(
            "Exam", "chris", invite=["ann"], with_password=True, lock=True, on_error={"noPermission": "skip"}
        ) as section,
    ):
        pass
    assert (section.create.invite, section.create.with_password) == (["ann"], True)
    assert (section.create.do_xcom_push, section.create.multiple_outputs) == (True, True)
    for each in section:
        assert each is not None
        assert (each.on_error, each.max_seconds) == ({"noPermission": Outcome.SKIP}, 7)


@pytest.mark.parametrize("whose", ["the section's", "the DAG's"])
def test_a_trigger_rule_is_that_of_the_create_alone(whose: str) -> None:
    given = {"trigger_rule": "none_failed"}
    own, of_dag = (given, {}) if whose == "the section's" else ({}, given)
    with (
        DAG("sections", schedule=None, default_args=of_dag) as dag,
        conference("Exam", "chris", lock=True, **own) as section,
    ):
        pass
    dag.validate_setup_teardown()
    assert section.create.trigger_rule == "none_failed"
    assert section.lock is not None
    assert section.lock.trigger_rule == "all_success"


@pytest.mark.parametrize(
    "given",
    [{"creator_id": "chris"}, {"room_code": "1"}, {"running": True, "title_pattern": "^Exam"}],
    ids=str,
)
def test_the_lock_takes_the_meeting_of_its_section_also_if_default_args_name_others(given: Any) -> None:
    with (
        DAG("sections", schedule=None, default_args=given),
        conference("Exam", "chris", lock=True) as section,
    ):
        pass
    for each in (section.lock, section.unlock):
        assert each is not None
        assert (each.named_by, each.creator_id, each.running) == ("conference_id", None, False)


@pytest.mark.parametrize("lock", [True, False])
def test_a_task_can_be_put_before_and_after_all_tasks_of_a_section(lock: bool) -> None:
    with DAG("sections", schedule=None) as dag:
        before, after = (task(task_id=name)(lambda: None)() for name in ("before", "after"))
        with conference("Exam", "chris", lock=lock) as section:
            pass
        before >> section >> after
    tasks = {each.task_id for each in section}
    assert len(tasks) == (4 if lock else 2)
    assert dag.get_task("before").downstream_task_ids == dag.get_task("after").upstream_task_ids == tasks


def test_lock_is_no_template() -> None:
    with (
        DAG("sections", schedule=None),
        pytest.raises(InvalidInputError, match="lock: 'False' is not True or False"),
        conference("Exam", "chris", lock="False"),  # type: ignore[arg-type]
    ):
        pass


# Sections that Airflow runs

DAG_FILE = """
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, task

from airflow_provider_dingconf.operators import ConferenceMembersOperator, conference


@task
def announce(join_url, room_code):
    print("Come to", join_url, room_code)


@task
def fail():
    raise AirflowFailException("the work failed")


def section(name, work, **arguments):
    with DAG(name, schedule=None, params={"creator": "chris"}, default_args={"retries": 1}) as dag:
        arguments = {"title": "Exam of {{ dag.dag_id }}", "creator_id": "{{ params.creator }}", **arguments}
        with conference(retry_delay=timedelta(0), **arguments) as section:
            work(section)
    return dag


open_one = section("open", lambda section: announce(section.join_url, section.room_code), with_password=True)
locked = section(
    "locked", lambda section: ConferenceMembersOperator(task_id="work", conference_id=section.conference_id), lock=True
)
broken = section("broken_meeting", lambda section: fail.override(task_id="work")(), lock=True)
"""


@pytest.fixture(scope="module")
def dags(airflow_db: None) -> dict[str, Any]:
    """Return the DAGs of a file in Airflow's folder of DAGs."""
    return names_of(DAG_FILE, "own_meetings")


def states(run: Any) -> dict[str, str]:
    """Return the states of a run's tasks, by what comes before ``_conference``, and of the run."""
    found = {ti.task_id.removesuffix("_conference"): str(ti.state) for ti in run.get_task_instances()}
    return {name: state for name, state in found.items() if "done" not in name} | {"run": str(run.state)}


def calls(sandbox: Sandbox) -> list[str]:
    return [call.name for call in sandbox.calls if call.name not in ("token", "members")]


def test_tasks_inside_a_section_know_the_meeting_and_no_password_shows(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = dags["open_one"].test()
    assert set(states(run).values()) == {"success"}
    ran = Ran.of(run, sandbox)
    (meeting,) = sandbox.conferences.values()
    assert (meeting.title, meeting.creator_id, meeting.status) == ("Exam of open", "chris", "ended")
    lines = "".join(capfd.readouterr()).splitlines(keepends=True)
    # At DEBUG, Airflow 3.0 logs what its supervisor is sent: XComs, rendered fields, what it masks.
    sent = ("MaskSecret", "SetRenderedFields", "XCom", "xcom")
    said = "".join(line for line in lines if not any(kind in line for kind in sent))
    assert f"Come to https://meeting.dingtalk.invalid/j/{meeting.room_code} {meeting.room_code}" in said
    assert ran.xcoms["create_conference", -1, "password"] == meeting.password
    assert ran.result("create_conference")["password"] == meeting.password
    assert meeting.host_password not in f"{said} {ran.xcoms} {ran.rendered}"
    assert meeting.password not in f"{said} {ran.rendered}"
    assert ran.link("create_conference", JoinConferenceLink()).endswith(f"/j/{meeting.room_code}")


def test_a_locked_section_costs_four_calls(dags: dict[str, Any], sandbox: Sandbox, conn: Any) -> None:
    assert set(states(dags["locked"].test()).values()) == {"success"}
    assert calls(sandbox) == ["create", "lock", "unlock", "close"]


def test_work_that_fails_fails_the_run_and_the_meeting_is_unlocked_and_closed(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any
) -> None:
    assert states(dags["broken"].test()) == {
        "create": "success", "lock": "success", "work": "failed", "unlock": "success", "close": "success",
        "run": "failed",
    }  # fmt: skip
    assert calls(sandbox) == ["create", "lock", "unlock", "close"]


@pytest.mark.parametrize("call", ["close", "unlock"])
def test_a_meeting_that_stays_open_or_locked_fails_the_run(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any, call: str
) -> None:
    sandbox.fail(Fault(call=call, code="noPermission"))
    expected = dict.fromkeys(("create", "lock", "work", "unlock", "close"), "success")
    assert states(dags["locked"].test()) == expected | {call: "failed", "run": "failed"}
    (meeting,) = sandbox.conferences.values()
    assert meeting.status == ("started" if call == "close" else "ended")


def test_no_work_is_done_when_the_lock_is_refused_and_the_meeting_is_closed(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any
) -> None:
    sandbox.fail(Fault(call="lock", code="noPermission"))
    assert states(dags["locked"].test()) == {
        "create": "success", "lock": "failed", "work": "upstream_failed", "unlock": "upstream_failed",
        "close": "success", "run": "failed",
    }  # fmt: skip
    assert calls(sandbox) == ["create", "lock", "close"]


@pytest.mark.parametrize("fault", [{"code": "permissionError"}, {"drop": True, "after": True}])
def test_nothing_else_is_done_when_the_create_fails_and_it_is_made_once(
    dags: dict[str, Any], sandbox: Sandbox, conn: Any, fault: dict[str, Any]
) -> None:
    sandbox.fail(Fault(call="create", **fault))
    expected = dict.fromkeys(("lock", "work", "unlock", "close"), "upstream_failed")
    assert states(dags["locked"].test()) == {"create": "failed", "run": "failed"} | expected
    assert calls(sandbox) == ["create"]

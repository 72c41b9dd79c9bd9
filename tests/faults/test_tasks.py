"""Every fault in a task: which state it gets, and what it leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.exceptions import AirflowFailException, AirflowSkipException
from runs import run_dag

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome
from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import nothing_left_open
from .fault_proxy import DRIPPED, FAULTS, FaultProxy, Route
from .rows import ON_THE_TOKEN, ROWS, Case, check, check_each, check_hung_up

ATTEMPTS = 2
STATES = {
    Outcome.FAIL: AirflowFailException,
    Outcome.SKIP: AirflowSkipException,
    Outcome.RETRY: DingTalkError,
}


class Instance:
    """As much of a task instance as an operator needs."""

    def xcom_push(self, key: str, value: Any) -> None:
        pass


def execute(case: Case) -> tuple[BaseException | None, float]:
    """Execute a task over the connection of a case; return what it raised, and the seconds that it took."""
    operator = LockConferenceOperator(
        task_id=case.conn_id,
        conference_id=case.meeting,
        dingtalk_conn_id=case.conn_id,
        max_attempts=ATTEMPTS,
        max_seconds=case.row.max_seconds,
    )
    began, raised = time.monotonic(), None
    try:
        operator.execute({"ti": Instance()})
    except BaseException as error:
        raised = error
    return raised, time.monotonic() - began


def execute_all(cases: dict[str, Case]) -> dict[str, tuple[BaseException | None, float]]:
    """Execute a task for each case, all at the same time."""
    with ThreadPoolExecutor(max_workers=len(cases)) as threads:
        return dict(zip(cases, threads.map(execute, cases.values()), strict=True))


@pytest.mark.parametrize("call", ["lock", "token"])
def test_a_task_that_meets_a_fault_gets_the_state_of_the_table(
    call: str, case_of: Callable[..., Case], behind: Sandbox
) -> None:
    names = [name for name in ROWS if call == "lock" or name in ON_THE_TOKEN]
    execute(case_of("401", "lock"))  # it fetches a token: some things live as long as the process
    cases = {name: case_of(name, call) for name in names}
    dripped = {name: cases.pop(name) for name in DRIPPED}  # their second is not spent on all the others
    with nothing_left_open():
        endings = execute_all(cases) | execute_all(dripped)
    cases |= dripped

    def check_one(name: str) -> None:
        raised, seconds = endings[name]
        error = (
            raised.__cause__ if isinstance(raised, (AirflowFailException, AirflowSkipException)) else raised
        )
        assert isinstance(error, DingTalkError)
        assert str(raised) == str(error)
        assert isinstance(raised, STATES[error.outcome])
        check(cases[name], error, seconds, ATTEMPTS, behind)
        check_hung_up(cases[name].route)

    check_each(cases, check_one)


# Tasks that Airflow runs

DAG_FILE = '''
"""Locked sections, and blocks in a task, whose work does not end well."""

import time
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.operators import conference_lock


def fails() -> None:
    raise RuntimeError("the work fails")


def outlasts_its_time() -> None:
    time.sleep(120)


def block(work: str) -> None:
    with DingTalkConferenceHook(f"block_{work}").locked(f"block_{work}"):
        globals()[work]()


with DAG("faults", schedule=None, default_args={"retries": 0}) as dag:
    for work in (fails, outlasts_its_time):
        name = work.__name__
        with conference_lock(f"section_{name}", name=name, dingtalk_conn_id=f"section_{name}"):
            task(task_id=f"work_{name}", execution_timeout=timedelta(seconds=1))(work)()
        task(task_id=f"block_{name}", execution_timeout=timedelta(seconds=3))(block)(name)
'''
WORK = ("fails", "outlasts_its_time")
Ran = tuple[dict[str, str], dict[str, Route]]
"""The states of tasks, and what the calls about each meeting went through."""


@pytest.fixture(scope="module")
def ran(airflow_db: None, layer: FaultProxy, behind: Sandbox) -> Iterator[Ran]:
    """Run the DAG once; the first unlock of each meeting meets a fault."""
    token_cache.forget()
    routes = {
        f"{kind}_{name}": layer.route({"unlock": [FAULTS["503 with HTML"]]})
        for kind in ("section", "block")
        for name in WORK
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, route in routes.items():
            behind.create_conference(conference_id=name)
            conn = behind.connection_json(host=route.url, extra={"timeout": 20})
            patch.setenv(f"AIRFLOW_CONN_{name.upper()}", conn)
        run = run_dag("faults", DAG_FILE)
    yield {ti.task_id: str(ti.state) for ti in run.get_task_instances()}, routes
    token_cache.forget()


def check_unlocked(meeting: str, ran: Ran, behind: Sandbox) -> None:
    _, routes = ran
    assert (routes[meeting].count("lock"), routes[meeting].count("unlock")) == (1, 2)
    assert not behind.conference(meeting).locked
    check_hung_up(routes[meeting])


@pytest.mark.parametrize("name", WORK)
def test_a_teardown_unlocks_after_work_that_did_not_end_well_through_faults(
    name: str, ran: Ran, behind: Sandbox
) -> None:
    states, _ = ran
    assert (states[f"work_{name}"], states[f"unlock_{name}"]) == ("failed", "success")
    check_unlocked(f"section_{name}", ran, behind)


@pytest.mark.parametrize("name", WORK)
def test_a_block_in_a_task_that_did_not_end_well_unlocks_through_faults(
    name: str, ran: Ran, behind: Sandbox
) -> None:
    states, _ = ran
    assert states[f"block_{name}"] == "failed"
    check_unlocked(f"block_{name}", ran, behind)

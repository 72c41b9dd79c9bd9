"""Every fault in a task: which state it gets, and what it leaves behind."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from airflow.exceptions import AirflowFailException, AirflowSkipException
from runs import run_dag

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome
from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import nothing_left_open
from .fault_proxy import DRIPPED, FAULTS, FaultProxy, Route, refusal
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
"""A task for each of some faults, and locked sections and blocks whose work does not end well."""

import json
import os
import time
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.operators import LockConferenceOperator, conference_lock

TASKS = json.loads(os.environ["FAULT_TASKS"])


def fails() -> None:
    raise RuntimeError("the work fails")


def outlasts_its_time() -> None:
    time.sleep(120)


def block(work, conference_id: str, dingtalk_conn_id: str) -> None:
    with DingTalkConferenceHook(dingtalk_conn_id).locked(conference_id):
        globals()[work]()


with DAG("faults", schedule=None, default_args={"retries": 0}) as dag:
    for name, arguments in TASKS["locks"].items():
        LockConferenceOperator(task_id=name, **arguments)
    for name, arguments in TASKS["sections"].items():
        with conference_lock(name=name, **arguments):
            task(task_id=f"work_{name}", execution_timeout=timedelta(seconds=1))(globals()[name])()
    for name, arguments in TASKS["blocks"].items():
        task(task_id=f"block_{name}", execution_timeout=timedelta(seconds=3))(block)(name, **arguments)
'''


@dataclass(frozen=True)
class TaskRow:
    """How a task ends.

    :param plan: what goes wrong.
    :param calls: lock calls, and token calls.
    :param locked: whether the meeting is locked in the end.
    """

    plan: dict[str, Any]
    state: str
    calls: tuple[int, int]
    locked: bool = False
    scheme: str = "http"
    arguments: dict[str, Any] = field(default_factory=dict)


def _always(name: str, call: str = "lock") -> dict[str, Any]:
    return {call: itertools.repeat(FAULTS[name])}


TASK_ROWS = {
    "reset_once": TaskRow({"lock": [FAULTS["reset after reading"]]}, "success", (2, 1), locked=True),
    "response_lost": TaskRow({"lock": [FAULTS["response lost by reset"]]}, "success", (2, 1), locked=True),
    "closed_for_ever": TaskRow(
        _always("closed in the body"), "failed", (2, 1), arguments={"max_attempts": 2}
    ),
    "ban": TaskRow(_always("ban in HTML"), "failed", (1, 1)),
    "refused_token": TaskRow({"lock": [refusal(401, "any")]}, "success", (2, 2), locked=True),
    "closed_meeting": TaskRow({"lock": [refusal(400, "confClosed")]}, "skipped", (1, 1)),
    "token_garbage": TaskRow({"token": [FAULTS["garbage"]]}, "success", (1, 2), locked=True),
    "no_token": TaskRow(
        _always("closed after reading", "token"), "failed", (0, 2), arguments={"max_attempts": 2}
    ),
    "certificate": TaskRow({}, "failed", (0, 0), scheme="https"),
}
UNLOCK = {"unlock": [FAULTS["503 with HTML"]]}
"""What goes wrong with the unlock, after work that did not end well."""
WORK = ("fails", "outlasts_its_time")


@dataclass
class Ran:
    """What Airflow made of the DAG."""

    states: dict[str, str]
    routes: dict[str, Route]
    meetings: dict[str, str]


@pytest.fixture(scope="module")
def ran(airflow_db: None, layer: FaultProxy, behind: Sandbox) -> Iterator[Ran]:
    """Run the DAG once, each task over another connection."""
    token_cache.forget()
    made = Ran({}, {}, {})
    with pytest.MonkeyPatch.context() as patch:

        def leads(name: str, row: TaskRow) -> dict[str, Any]:
            route = made.routes[name] = layer.route(row.plan)
            made.meetings[name] = behind.create_conference(name)
            url = route.https_url if row.scheme == "https" else route.url
            fields = behind.connection(host=url, extra={"timeout": 20})
            patch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
            return {"conference_id": made.meetings[name], "dingtalk_conn_id": name, **row.arguments}

        tasks = {
            "locks": {name: leads(name, row) for name, row in TASK_ROWS.items()},
            **{
                kind: {name: leads(f"{kind}_{name}", TaskRow(UNLOCK, "", (1, 1))) for name in WORK}
                for kind in ("sections", "blocks")
            },
        }
        patch.setenv("FAULT_TASKS", json.dumps(tasks))
        run = run_dag("faults", DAG_FILE)
        made.states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    yield made
    token_cache.forget()


@pytest.mark.parametrize("name", TASK_ROWS)
def test_a_task_whose_call_meets_a_fault_ends_as_the_table_says(name: str, ran: Ran, behind: Sandbox) -> None:
    row, route = TASK_ROWS[name], ran.routes[name]
    assert ran.states[name] == row.state
    assert (route.count("lock"), route.count("token"), route.count("unlock", "other")) == (*row.calls, 0)
    assert behind.conference(ran.meetings[name]).locked is row.locked


@pytest.mark.parametrize("name", WORK)
def test_a_teardown_unlocks_after_work_that_did_not_end_well_through_faults(
    name: str, ran: Ran, behind: Sandbox
) -> None:
    assert ran.states[f"work_{name}"] == "failed"
    assert ran.states[f"unlock_{name}"] == "success"
    assert ran.routes[f"sections_{name}"].count("unlock") == 2
    assert not behind.conference(ran.meetings[f"sections_{name}"]).locked


@pytest.mark.parametrize("name", WORK)
def test_a_block_in_a_task_that_did_not_end_well_unlocks_through_faults(
    name: str, ran: Ran, behind: Sandbox
) -> None:
    assert ran.states[f"block_{name}"] == "failed"
    assert ran.routes[f"blocks_{name}"].count("unlock") == 2
    assert not behind.conference(ran.meetings[f"blocks_{name}"]).locked


def test_the_tasks_leave_no_connection_open(ran: Ran) -> None:
    check_hung_up(*ran.routes.values())

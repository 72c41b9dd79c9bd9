"""Tasks that lock many meetings, and sections: how they end, and what is then still locked."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from faults.scenarios import killer_of
from packaging.version import Version
from runs import Instance, Ran, connected_sandbox, run_dag

from airflow_provider_dingconf import roll_back
from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.dingtalk.errors import CredentialsError, DingTalkError, InvalidInputError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.links import JoinConferenceLink
from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator
from airflow_provider_dingconf.sandbox import Fault, Sandbox

pytestmark = pytest.mark.usefixtures("conn")
HAS_STORE = Version(airflow_version) >= Version("3.3")
"""Whether Airflow keeps the state of a task between its tries."""

# Tasks that Airflow runs

DAG_FILE = """
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.operators import (
    LockConferenceOperator,
    UnlockConferenceOperator,
    conference_lock,
)

with DAG(
    "many",
    schedule=None,
    default_args={"retries": 3, "retry_delay": timedelta(0), "retry_exponential_backoff": False, "max_attempts": 1},
    params={"room": "123 456-7890"},
) as dag:

    @task
    def find() -> list[str]:
        return ["found-1", "found-2"]

    @task
    def work() -> None: ...

    LockConferenceOperator(task_id="by_room_code", room_code="{{ params.room }}")
    LockConferenceOperator.partial(task_id="rooms").expand(room_code=["2222222222", "333 333-3333", "9" * 300])
    LockConferenceOperator.partial(task_id="lists").expand(
        conference_id=[[f"a-meeting-with-a-long-id-{number}" for number in range(20)], ["found-1"]]
    )

    LockConferenceOperator(task_id="found", conference_id=find())
    running = LockConferenceOperator(task_id="running", running=True, title_pattern="^Exam ")
    UnlockConferenceOperator(task_id="unlock_running", conference_id=running.output)
    LockConferenceOperator(task_id="filter_of_none", running=True, title_pattern="{{ params.get('title') }}")
    part = LockConferenceOperator(task_id="part", conference_id=["part-1", "sandbox-noPermission"])
    UnlockConferenceOperator(task_id="unlock_part", conference_id=part.output, trigger_rule="all_done")

    LockConferenceOperator(
        task_id="retried", conference_id=["retried-1", "sandbox-flaky", "sandbox-commandError", "retried-2"]
    )

    with conference_lock(room_code="1234567890", name="section"):
        work()
    with conference_lock(["failed-1", "sandbox-noPermission"], name="failed"):
        work()
"""

MEETINGS = [
    "found-1", "found-2", "part-1", "retried-1", "retried-2", "failed-1",
    *(f"a-meeting-with-a-long-id-{number}" for number in range(20)),
]  # fmt: skip


@pytest.fixture(scope="module")
def ran(airflow_db: None) -> Iterator[Ran]:
    with connected_sandbox() as sandbox:
        for meeting in MEETINGS:
            sandbox.create_conference(conference_id=meeting)
        for room, code in {"room-now": "1234567890", "room-2": "2222222222", "room-3": "3333333333"}.items():
            sandbox.create_conference(conference_id=room, room_code=code)
        for number, status in enumerate(("ended", "started", "started")):
            sandbox.create_conference(f"Exam {number}", conference_id=f"exam-{number}", status=status)
        yield Ran.of(run_dag("many", DAG_FILE), sandbox)


def ids_of(results: Any) -> list[str]:
    return [one["conference_id"] for one in results]


def test_a_room_code_is_a_template_and_its_running_meeting_is_locked(ran: Ran) -> None:
    assert ran.state("by_room_code") == "success"
    assert ran.rendered["by_room_code"]["room_code"] == "123 456-7890"
    assert ran.result("by_room_code")["conference_id"] == "room-now"
    assert ran.link("by_room_code", JoinConferenceLink()).endswith("/1234567890")


def test_mapped_tasks_are_named_by_their_room_code_or_by_the_length_of_their_list(ran: Ran) -> None:
    names = {key: ran.instances[key].rendered_map_index for key in ran.instances}
    assert [names["rooms", index] for index in range(2)] == ["2222222222", "333 333-3333"]
    assert names["rooms", 2] == "9" * 250  # SQLite takes any length; PostgreSQL takes 250
    assert [names["lists", index] for index in range(2)] == ["20 meetings", "1 meetings"]
    assert ran.sandbox.conference("room-3").locked
    assert [str(ran.instances["lists", index].state) for index in range(2)] == ["success"] * 2


def test_the_list_can_be_the_xcom_of_a_task(ran: Ran) -> None:
    assert ran.state("found") == "success"
    assert ran.sandbox.conference("found-2").locked


def test_every_running_meeting_of_a_title_is_locked_and_unlocked(ran: Ran) -> None:
    assert ids_of(ran.result("running")) == ids_of(ran.result("unlock_running")) == ["exam-1", "exam-2"]
    assert [ran.actions(f"exam-{number}") for number in range(3)] == [[], *[["lock", "unlock"]] * 2]


def test_a_filter_that_a_template_renders_to_none_fails_the_task(ran: Ran) -> None:
    assert (ran.state("filter_of_none"), ran.tries("filter_of_none")) == ("failed", 1)


def test_the_xcom_of_a_lock_that_failed_names_the_meetings_to_unlock(ran: Ran) -> None:
    assert (ran.state("part"), ran.tries("part"), ran.state("unlock_part")) == ("failed", 1, "success")
    assert ids_of(ran.result("unlock_part")) == ["part-1"]
    assert not ran.sandbox.conference("part-1").locked


def test_a_retry_locks_only_the_remaining_meetings_if_airflow_has_a_store(ran: Ran) -> None:
    # The flaky meeting fails twice and is locked. Then the meeting that is refused fails the task.
    assert (ran.state("retried"), ran.tries("retried")) == ("failed", 3)
    locks = [len(ran.calls_of(meeting, "lock")) for meeting in ("retried-1", "sandbox-flaky", "retried-2")]
    again = 1 if HAS_STORE else 3
    assert locks == [again, 3, again]
    assert {*ids_of(ran.result("retried"))} == {
        "retried-1",
        "retried-2",
        "sandbox-flaky",
        "sandbox-commandError",
    }


def test_a_section_unlocks_what_it_has_locked_also_if_its_lock_fails(ran: Ran) -> None:
    assert ran.states("lock_section", "work", "unlock_section") == ["success"] * 3
    assert ran.result("unlock_section")["conference_id"] == "room-now"
    assert ran.state("lock_failed") == "failed"
    assert ran.actions("failed-1") == ["lock", "unlock"]


# Tasks whose ``execute`` is called directly


class Store(dict[str, Any]):
    """A store for the state of a task, as Airflow 3.3 has one, which the tries of a task share."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        del self[key]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what returns the log, wherever the version of Airflow writes it."""
    return lambda: "".join(capfd.readouterr()) + caplog.text


def a_try(number: int = 1, of: int = 3, store: Any = None) -> Any:
    context: Any = {"ti": Instance(number, of)}
    return context if store is None else {**context, "task_state_store": store}


def lock(conference_id: Any = None, **arguments: Any) -> LockConferenceOperator:
    named = {} if conference_id is None else {"conference_id": conference_id}
    return LockConferenceOperator(task_id="task", **named, **arguments)


def unlock(conference_id: Any, **arguments: Any) -> Any:
    return UnlockConferenceOperator(task_id="task", conference_id=conference_id, **arguments).execute(a_try())


def create(sandbox: Sandbox, number: int) -> list[str]:
    return [sandbox.create_conference() for _ in range(number)]


def locks_of(sandbox: Sandbox, meeting: str) -> int:
    return [call.conference_id for call in sandbox.calls_of("lock")].count(meeting)


def unlocked(sandbox: Sandbox) -> list[str]:
    return sorted(call.conference_id or "" for call in sandbox.calls_of("unlock"))


def locked(sandbox: Sandbox, meetings: list[str]) -> list[str]:
    return [meeting for meeting in meetings if sandbox.conference(meeting).locked]


EXAMS = {"running": True, "title_pattern": "^Exam "}


@pytest.fixture
def meetings(sandbox: Sandbox) -> Sandbox:
    """Return a sandbox with meetings that run and meetings that have ended."""
    sandbox.create_conference(conference_id="a")
    sandbox.create_conference(conference_id="scheduled", schedule_conference_id="schedule")
    for number in (1, 2):
        sandbox.create_conference(f"Exam {number}", conference_id=f"exam-{number}")
    for meeting in ("ended", "past"):
        sandbox.create_conference(conference_id=meeting, status="ended")
    return sandbox


@pytest.mark.parametrize(
    ("given", "results"),
    [
        pytest.param({"schedule_conference_id": "schedule"}, {"scheduled": True}, id="a schedule"),
        pytest.param({"conference_id": ["a", "exam-1"]}, {"a": True, "exam-1": True}, id="a list"),
        pytest.param({"conference_id": []}, {}, id="an empty list"),
        pytest.param({**EXAMS, "title_pattern": "^No"}, {}, id="a title of no running meeting"),
        pytest.param({"conference_id": ["ended", "a"]}, {"ended": False, "a": True}, id="one has ended"),
        pytest.param({**EXAMS, "max_meetings": 2}, {"exam-1": True, "exam-2": True}, id="max_meetings"),
        pytest.param({**EXAMS, "dry_run": True}, {"exam-1": False, "exam-2": False}, id="a dry run"),
    ],
)
def test_a_task_succeeds_with_a_result_for_each_meeting(
    meetings: Sandbox, given: dict[str, Any], results: dict[str, bool]
) -> None:
    xcom = LockConferenceOperator(task_id="task", **given).execute(a_try())
    found = xcom if isinstance(xcom, list) else [xcom]
    assert [(one["conference_id"], one["success"]) for one in found] == [*results.items()]
    assert locked(meetings, [*meetings.conferences]) == [one for one, success in results.items() if success]


def test_the_xcom_of_a_list_is_a_list_of_plain_values() -> None:
    done, noted = lock(["sandbox-open", "sandbox-ended"]).execute(a_try())
    error = noted["error"]
    assert error["code"] == "confClosed"
    one = {"action": "lock", "attempts": 1}
    assert done == {
        "conference_id": "sandbox-open", "success": True, "request_id": None, "error": None, **one
    }  # fmt: skip
    assert noted == {
        "conference_id": "sandbox-ended", "success": False, "request_id": error["request_id"], "error": error, **one
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"room_code": "999"}, "no meeting is running"),
        ({"conference_id": ["a", "a/b"]}, "'a/b' has '/'"),
        ({"conference_id": "[" * 300}, "it has 300 characters"),
        ({"conference_id": "['a', b]"}, "has '[', which cannot stand in a conference id"),
        ({"conference_id": "{['a']: 'b'}"}, "has '{', which cannot stand in a conference id"),
        ({**EXAMS, "max_meetings": 1}, "max_meetings: 2 meetings are found, and the task may lock 1"),
        ({"running": True, "title_pattern": None}, "title_pattern: it is 'None', as a template or XCom"),
        ({"running": True, "creator_id": None}, "creator_id: it is 'None', as a template or XCom"),
        ({"running": True, "title_pattern": ""}, "title_pattern: it is empty"),
        ({"running": True, "creator_id": ""}, "creator_id: it is empty"),
    ],
)
def test_a_task_fails_before_it_locks_a_meeting(meetings: Sandbox, given: dict[str, Any], said: str) -> None:
    with pytest.raises(AirflowFailException) as raised:
        LockConferenceOperator(task_id="task", **given).execute({})
    assert said in str(raised.value)
    assert meetings.calls_of("lock") == []


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"room_code": "999", "on_error": {"confNotRunning": "skip"}}, id="none is running"),
        pytest.param(
            {"conference_id": ["a", "ended"], "on_error": {"confClosed": "skip"}}, id="one has ended"
        ),
        pytest.param({"conference_id": ["ended", "past"]}, id="all have ended"),
    ],
)
def test_a_task_is_skipped_if_all_have_ended_or_on_error_says_so(
    meetings: Sandbox, given: dict[str, Any]
) -> None:
    with pytest.raises(AirflowSkipException):
        LockConferenceOperator(task_id="task", **given).execute(a_try())


@pytest.mark.parametrize("pushes", [True, False])
def test_a_task_fails_when_one_meeting_does_and_the_others_are_locked(sandbox: Sandbox, pushes: bool) -> None:
    fine = create(sandbox, 2)
    context = a_try()
    with pytest.raises(AirflowFailException):
        lock([fine[0], "sandbox-noPermission", "sandbox-ended", fine[1]], do_xcom_push=pushes).execute(
            context
        )
    assert locked(sandbox, fine) == fine, "outside a section they stay locked"
    results = context["ti"].xcoms.get("return_value", [])
    codes = [one["error"] and one["error"]["code"] for one in results]
    assert codes == ([None, "noPermission", "confClosed", None] if pushes else [])


def test_the_xcom_of_a_lock_names_the_meetings_that_may_be_locked(sandbox: Sandbox) -> None:
    sure, lost = create(sandbox, 2)
    sandbox.fail(Fault(call="lock", path=lost, drop=True, after=True))
    on_error = {"connectionLost": "succeed", "noPermission": "succeed"}
    task = lock([sure, lost, "sandbox-noPermission"], on_error=on_error, max_attempts=1)
    assert ids_of(unlock(task.execute(a_try()))) == [sure, lost]
    assert locked(sandbox, [sure, lost]) == []


def test_if_no_meeting_was_found_there_is_nothing_to_unlock(sandbox: Sandbox) -> None:
    xcom = lock(room_code="999", on_error={"confNotRunning": "succeed"}).execute(a_try())
    assert xcom["conference_id"] is None
    nothing = {"conference_id": None, "action": "unlock", "success": True, "attempts": 0, "request_id": None}
    assert unlock(xcom) == nothing


def test_a_meeting_that_was_found_by_its_room_code_and_refused_is_named(sandbox: Sandbox) -> None:
    sandbox.create_conference(conference_id="sandbox-room", room_code="123")
    sandbox.fail(Fault(call="lock", code="noPermission"))
    result = lock(room_code="123", on_error={"noPermission": "succeed"}).execute(a_try())
    assert (result["conference_id"], result["success"]) == ("sandbox-room", False)


# Retries


@pytest.mark.parametrize(
    ("has_store", "tries", "locks"),
    [
        pytest.param(True, 3, 1, id="with a store, completed meetings are not locked again"),
        pytest.param(False, 3, 2, id="without a store, all are locked again"),
        pytest.param(True, 4, 2, id="after the task was cleared, all are locked again"),
    ],
)
def test_a_retry_locks_the_remaining_meetings(
    sandbox: Sandbox, store: Store, has_store: bool, tries: int, locks: int
) -> None:
    fine, flaky = create(sandbox, 2)
    sandbox.fail(Fault(call="lock", path=flaky, code="systemError", times=1))
    saved = store if has_store else None
    with pytest.raises(DingTalkError):
        lock([fine, flaky], max_attempts=1).execute(a_try(1, store=saved))
    # A task that is cleared has as many tries left as it had at first.
    results = lock([fine, flaky]).execute(a_try(2, of=tries, store=saved))
    assert [one["success"] for one in results] == [True, True]
    assert (locks_of(sandbox, fine), locks_of(sandbox, flaky)) == (locks, 2)


def test_a_cleared_task_locks_all_again_though_it_has_fewer_retries_now(
    sandbox: Sandbox, store: Store
) -> None:
    (meeting,) = create(sandbox, 1)
    lock([meeting], retries=1).execute(a_try(1, of=2, store=store))
    # Airflow has made max_tries of one try so far and no retries, which is what it was.
    lock([meeting], retries=0).execute(a_try(2, of=2, store=store))
    assert locks_of(sandbox, meeting) == 2


def test_a_meeting_that_one_dingtalk_has_locked_is_not_completed_for_another(
    sandbox: Sandbox, conn: Callable[..., None], store: Store
) -> None:
    with Sandbox() as other:
        for each in (sandbox, other):
            each.create_conference(conference_id="same")
        with pytest.raises(DingTalkError):
            lock(["same", "sandbox-systemError"], max_attempts=1).execute(a_try(1, store=store))
        conn(host=other.url)
        lock(["same"]).execute(a_try(2, store=store))
        assert locks_of(other, "same") == 1


def test_more_completed_meetings_than_fit_into_one_entry_of_the_store_are_kept(
    sandbox: Sandbox, store: Store
) -> None:
    meetings = [sandbox.create_conference(conference_id=f"refused-{number}") for number in range(150)]
    refusal = {"code": "noPermission", "message": "y" * 400}
    sandbox.fail(Fault(call="lock", path="/refused-", status=400, body=refusal))
    with pytest.raises(DingTalkError):
        lock([*meetings, "sandbox-systemError"], max_attempts=1).execute(a_try(1, store=store))
    assert len(store) > 2
    with pytest.raises(AirflowFailException):
        lock([*meetings, "sandbox-open"]).execute(a_try(2, store=store))
    assert [locks_of(sandbox, meeting) for meeting in meetings] == [1] * 150


class _BrokenStore:
    """A store for the state of a task whose server is down."""

    def get(self, key: str) -> Any:
        raise RuntimeError("503 from the API server")

    set = delete = get


def test_a_broken_store_costs_one_warning_and_no_lock(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        results = lock(create(sandbox, 3)).execute(a_try(store=_BrokenStore()))
    assert all(one["success"] for one in results)
    assert len([line for line in caplog.messages if "503 from the API server" in line]) == 1


@pytest.mark.parametrize("outcome", ["fail", "succeed"])
def test_a_retry_that_gets_no_token_keeps_the_completed_meetings(
    sandbox: Sandbox, outcome: str, store: Store
) -> None:
    fine, flaky = create(sandbox, 2)
    sandbox.fail(Fault(call="lock", path=flaky, code="systemError", times=1))
    with pytest.raises(DingTalkError):
        lock([fine, flaky], max_attempts=1).execute(a_try(1, store=store))
    sandbox.fail(Fault(call="token", code="invalidClientIdOrSecret"))
    token_cache.forget()
    for file in token_cache.default_directory().glob("*.token"):
        file.unlink()
    context = a_try(2, store=store)
    task = lock([fine, flaky], on_error={"invalidClientIdOrSecret": outcome})
    if outcome == "fail":
        with pytest.raises(AirflowFailException, match="Client ID") as raised:
            task.execute(context)
        assert isinstance(raised.value.__cause__, CredentialsError)
        results = context["ti"].xcoms["return_value"]
    else:
        results = task.execute(context)
    assert [(one["conference_id"], one["success"]) for one in results] == [(fine, True), (flaky, False)]
    assert results[1]["error"]["code"] == "invalidClientIdOrSecret"


# Sections


@pytest.mark.parametrize("many", [True, False], ids=["one of many", "one"])
@pytest.mark.parametrize(
    ("fault", "on_error", "raises"),
    [
        pytest.param({"code": "confClosed"}, "skip", AirflowSkipException, id="has ended"),
        pytest.param({"code": "noPermission"}, "fail", AirflowFailException, id="is refused"),
        pytest.param({"drop": True, "after": True}, "retry", DingTalkError, id="lost its response"),
    ],
)
def test_a_section_whose_lock_does_not_succeed_leaves_no_meeting_locked(
    sandbox: Sandbox, many: bool, fault: dict[str, Any], on_error: str, raises: type
) -> None:
    meetings = create(sandbox, 3)
    sandbox.fail(Fault(call="lock", path=meetings[1], **fault))
    given = {"max_attempts": 1, "on_error": {"DingTalkError": on_error}, "unlock_on_failure": True}
    with pytest.raises(raises):
        lock(meetings if many else meetings[1], **given).execute(a_try())
    assert locked(sandbox, meetings) == []
    tried = meetings if many else meetings[1:2]
    assert unlocked(sandbox) == sorted(one for one in tried if one != meetings[1] or "drop" in fault)


@pytest.mark.parametrize("number", [1, 2])
def test_a_section_keeps_nothing_between_tries_and_locks_all_again(
    sandbox: Sandbox, store: Store, number: int
) -> None:
    sure, lost = create(sandbox, 2)
    sandbox.fail(Fault(call="lock", path=lost, drop=True, after=True, times=1))
    arguments: Any = {"max_attempts": 1, "unlock_on_failure": True}
    with pytest.raises(DingTalkError):
        lock([sure, lost], **arguments).execute(a_try(number, of=2, store=store))
    assert unlocked(sandbox) == sorted([lost, sure])
    assert not sandbox.conference(sure).locked
    assert not store
    lock([sure, lost], **arguments).execute(a_try(number + 1, store=store))
    assert (locks_of(sandbox, sure), sandbox.conference(lost).locked) == (2, True)


class _ExpiredTokenError(Exception):
    """What Airflow 3 raises for a response of its API server."""

    error = SimpleNamespace(detail={"status_code": 403})


@pytest.mark.parametrize("many", [True, False], ids=["many", "one"])
@pytest.mark.parametrize(
    ("pulled", "superseded"),
    [
        pytest.param("of another try", True, id="another try"),
        pytest.param(None, True, id="a try that has not pushed yet"),
        pytest.param(_ExpiredTokenError(), True, id="an expired token"),
        pytest.param(RuntimeError("any other error"), False, id="no other try is known"),
        pytest.param(repr, False, id="an XCom backend that returns another text"),
        pytest.param(str.encode, False, id="an XCom backend that returns bytes"),
    ],
)
def test_a_superseded_try_of_a_section_does_not_unlock_what_its_successor_has_locked(
    sandbox: Sandbox, many: bool, pulled: Any, superseded: bool, logged: Callable[[], str]
) -> None:
    ids = create(sandbox, 3 if many else 1)
    sandbox.fail(Fault(call="lock", path=ids[-1], drop=True, after=True))
    context = a_try()

    def pull(**_: Any) -> Any:
        if isinstance(pulled, Exception):
            raise pulled
        return pulled(context["ti"].xcoms[roll_back.TRY_KEY]) if callable(pulled) else pulled

    context["ti"].xcom_pull = pull
    with pytest.raises(DingTalkError):
        lock(ids if many else ids[0], unlock_on_failure=True, max_attempts=1).execute(context)
    assert unlocked(sandbox) == ([] if superseded else sorted(ids))
    said = logged()
    assert ("another try of this task: nothing is rolled back" in said) is superseded
    assert (f"Rolling back: unlocking {len(ids)} meetings" in said) is not superseded


@pytest.mark.parametrize("superseded", [True, False])
def test_a_block_that_raises_unlocks_unless_its_try_is_superseded(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, superseded: bool
) -> None:
    meeting, context = sandbox.create_conference(), a_try()
    monkeypatch.setattr(roll_back, "get_current_context", lambda: context)

    def work() -> None:
        with DingTalkConferenceHook().locked(meeting):
            if superseded:
                context["ti"].xcoms = {}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert sandbox.conference(meeting).locked == superseded


def test_a_meeting_that_cannot_be_unlocked_again_is_named_in_the_log(
    sandbox: Sandbox, logged: Callable[[], str]
) -> None:
    stuck = sandbox.create_conference()
    sandbox.fail(Fault(call="unlock", path=stuck, code="noPermission"))
    with pytest.raises(AirflowFailException):
        lock([stuck, "sandbox-noPermission"], unlock_on_failure=True).execute(a_try())
    assert f"Still locked: {stuck}. To unlock by hand" in logged()


def test_a_roll_back_repeats_its_calls_whatever_max_attempts_of_the_task_says(sandbox: Sandbox) -> None:
    fine = sandbox.create_conference()
    sandbox.fail(Fault(call="unlock", code="systemError", times=1))
    with pytest.raises(AirflowFailException):
        lock([fine, "sandbox-noPermission"], unlock_on_failure=True, max_attempts=1).execute(a_try())
    assert not sandbox.conference(fine).locked


# Interruptions


class Interrupted(BaseException):
    """What the handler of a signal raises: so does Airflow's execution timeout."""


def raise_interrupted(number: int, frame: Any) -> None:
    raise Interrupted


@contextmanager
def interrupted(sandbox: Sandbox, meetings: list[str], handler: Any, more: int = 0) -> Iterator[None]:
    """Send this process SIGTERM once meetings are locked, and once more after so many unlocks."""

    def watch() -> None:
        while locked(sandbox, meetings) != meetings:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        while more:
            time.sleep(0.01)
            if len(sandbox.calls_of("unlock")) >= more:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, handler)
    threading.Thread(target=watch, daemon=True).start()
    try:
        with pytest.raises(BaseException) as raised:  # noqa: PT011
            yield
        assert type(raised.value).__name__ in {"Interrupted", "SystemExit", "AirflowTaskTerminated"}
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("section", "tries"), [(False, 2), (False, 1), (True, 2)])
def test_an_interrupted_task_undoes_what_was_being_locked_and_all_that_no_try_will_take_up(
    sandbox: Sandbox, store: Store, section: bool, tries: int
) -> None:
    meetings = create(sandbox, 8)
    for slow in meetings[-4:]:  # DingTalk locks it, and responds late
        sandbox.fail(Fault(call="lock", path=slow, delay=60.0, after=True))
    task = lock(meetings, concurrency=4, unlock_on_failure=section)
    began = time.monotonic()
    with interrupted(sandbox, meetings, raise_interrupted):
        task.execute(a_try(of=tries, store=store))
    assert time.monotonic() - began < 45
    assert locked(sandbox, meetings) == ([] if section or tries == 1 else meetings[:4])
    sandbox.heal()
    # Also after the only try: a task that is cleared while it runs is tried again.
    lock(meetings, unlock_on_failure=section).execute(a_try(2, of=tries, store=store))
    assert locked(sandbox, meetings) == meetings


def test_a_task_that_airflow_ends_in_a_section_unlocks_what_it_has_locked(sandbox: Sandbox) -> None:
    meetings = create(sandbox, 8)
    for slow in meetings[-4:]:
        sandbox.fail(Fault(call="lock", path=slow, delay=60.0, after=True))
    task = lock(meetings, concurrency=4, unlock_on_failure=True)
    with interrupted(sandbox, meetings, killer_of(task)):
        task.execute(a_try())
    assert locked(sandbox, meetings) == []
    lock(meetings[:4]).execute(a_try(2))
    assert [locks_of(sandbox, one) for one in meetings[:4]] == [2] * 4, "a retry locks them again"


def test_a_second_signal_does_not_stop_the_unlocking_nor_what_the_retry_must_know(sandbox: Sandbox) -> None:
    meetings = create(sandbox, 4)
    sandbox.fail(Fault(call="lock", path=meetings[-1], delay=20.0, after=True))
    sandbox.fail(Fault(call="unlock", delay=0.5))
    task = lock(meetings, unlock_on_failure=True)
    with interrupted(sandbox, meetings, killer_of(task), more=2):  # the first undoes the lock in flight
        task.execute(a_try())
    assert locked(sandbox, meetings) == []
    sandbox.heal()
    lock(meetings).execute(a_try(2))
    assert locked(sandbox, meetings) == meetings


# The XComs that an unlock takes


def test_the_xcom_of_an_unlock_names_those_that_it_did_not_unlock_too(sandbox: Sandbox) -> None:
    meetings = create(sandbox, 2)
    lock(meetings).execute(a_try())
    sandbox.fail(Fault(call="unlock", path=meetings[1], code="noPermission", times=1))
    context = a_try()
    with pytest.raises(AirflowFailException):
        UnlockConferenceOperator(task_id="task", conference_id=meetings).execute(context)
    unlock(context["ti"].xcoms["return_value"])
    assert locked(sandbox, meetings) == []


def test_an_unlock_takes_the_xcoms_of_mapped_locks_of_lists(sandbox: Sandbox) -> None:
    first, second, third = create(sandbox, 3)
    xcoms = [lock([first, second]).execute(a_try()), lock([third]).execute(a_try())]
    assert ids_of(unlock(xcoms)) == [first, second, third]


def test_an_unlock_takes_the_mappings_that_an_xcom_backend_returns(sandbox: Sandbox) -> None:
    meetings = create(sandbox, 2)
    locks = [UserDict(each) for each in lock(meetings).execute(a_try())]
    assert ids_of(unlock(locks)) == meetings
    unlock(UserDict(lock(meetings[0]).execute(a_try())))
    assert locked(sandbox, meetings) == []


@pytest.mark.parametrize(
    "as_text", [str, lambda meetings: f" {meetings} ", json.dumps], ids=["text", "in spaces", "JSON"]
)
def test_a_list_that_a_template_rendered_as_text_is_a_list(sandbox: Sandbox, as_text: Any) -> None:
    meetings = create(sandbox, 2)
    locks = lock(as_text(meetings)).execute(a_try())
    assert locked(sandbox, meetings) == meetings
    assert ids_of(unlock(as_text(locks))) == meetings
    assert locked(sandbox, meetings) == []


# Throttling


def test_while_dingtalk_asks_to_wait_no_other_meeting_is_locked(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="lock", code="systemBusy", headers={"Retry-After": "1"}, times=1))
    results = DingTalkConferenceHook().lock_conferences(create(sandbox, 30), concurrency=3)
    assert all(one.success for one in results)
    times = sorted(call.time for call in sandbox.calls_of("lock"))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) > 0.8
    # The first is refused; two more may be under way.
    assert gaps.index(max(gaps)) <= 2


# When the DAG is parsed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "conference_id: it is missing; give it or room_code, schedule_conference_id, running"),
        ({"conference_id": "a", "room_code": "1"}, "conference_id and room_code are given"),
        ({"room_code": "1", "running": True}, "room_code and running are given"),
        ({"conference_id": "a", "title_pattern": "x"}, "title_pattern: for running meetings only"),
        (
            {"conference_id": "a", "creator_id": "x"},
            "creator_id: for running meetings only; set running=True",
        ),
        ({"title_pattern": "x"}, "title_pattern: for running meetings only; set running=True"),
        ({"creator_id": "x", "conference_id": "a"}, "None if the value comes from default_args"),
        ({"conference_id": map(str, [1])}, "conference_id: a map can be read only once; give a list"),
        ({"conference_id": (each for each in "ab")}, "conference_id: a generator can be read only once"),
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

"""Tasks that lock many meetings, or a section, and do not get through: what is left behind, kept and said."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from faults.scenarios import killer_of
from runs import Ran, connected_sandbox, run_dag

from airflow_provider_dingconf import roll_back
from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.dingtalk.errors import CredentialsError, DingTalkError, InvalidInputError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.links import JoinConferenceLink
from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator
from airflow_provider_dingconf.sandbox import Fault, Sandbox

DAG_FILE = """
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_dingconf.operators import (
    LockConferenceOperator,
    UnlockConferenceOperator,
    conference_lock,
)

with DAG("ending_badly", schedule=None, default_args={"retries": 0, "max_attempts": 1}) as dag:

    @task
    def work() -> None: ...

    @task
    def nothing() -> None: ...

    with conference_lock(
        ["skipped-1", "sandbox-ended", "skipped-2"], name="skipped", on_error={"confClosed": "skip"}
    ):
        work()
    with conference_lock(["failed-1", "sandbox-noPermission", "lost-1"], name="failed", retries=0):
        work()
    with conference_lock("lost-2", name="lost", retries=0):
        work()

    uncertain = LockConferenceOperator(
        task_id="uncertain",
        conference_id=["sure", "lost-3", "sandbox-systemError"],
        on_error={"connectionLost": "succeed", "systemError": "succeed"},
    )
    UnlockConferenceOperator(
        task_id="unlock_uncertain", conference_id=uncertain.output, on_error={"systemError": "succeed"}
    )

    LockConferenceOperator(task_id="of_nobody", running=True, creator_id=nothing())
    LockConferenceOperator(task_id="of_no_title", running=True, title_pattern="{{ params.get('title') or '' }}")

    none = LockConferenceOperator(
        task_id="no_meeting", room_code="999", on_error={"confNotRunning": "succeed"}
    )
    UnlockConferenceOperator(task_id="unlock_no_meeting", conference_id=none.output)
    LockConferenceOperator(task_id="found", room_code="1234567890", on_error={"noPermission": "succeed"})

    LockConferenceOperator.partial(task_id="lists").expand(
        conference_id=[[f"a-meeting-with-a-long-id-{number}" for number in range(20)], ["sure"]]
    )
    LockConferenceOperator.partial(task_id="long").expand(room_code=["9" * 300])
    LockConferenceOperator(
        task_id="unseen", conference_id=["sure", "sandbox-noPermission"], do_xcom_push=False
    )
"""

MEETINGS = ["skipped-1", "skipped-2", "failed-1", "lost-1", "lost-2", "lost-3", "sure"]


@pytest.fixture(scope="module")
def world(airflow_db: None) -> Iterator[tuple[Ran, Sandbox]]:
    with connected_sandbox() as sandbox:
        for meeting in [*MEETINGS, *(f"a-meeting-with-a-long-id-{number}" for number in range(20))]:
            sandbox.create_conference(meeting, conference_id=meeting)
        sandbox.create_conference(conference_id="sandbox-room", room_code="1234567890")
        sandbox.fail(Fault(call="lock", path="/sandbox-room/", code="noPermission"))
        sandbox.fail(Fault(call="lock", path="/lost-", drop=True, after=True))
        yield Ran.of(run_dag("ending_badly", DAG_FILE), sandbox.calls), sandbox


@pytest.fixture(scope="module")
def ran(world: tuple[Ran, Sandbox]) -> Ran:
    return world[0]


@pytest.fixture(scope="module")
def dingtalk(world: tuple[Ran, Sandbox]) -> Sandbox:
    return world[1]


@pytest.mark.parametrize(
    ("section", "state", "meetings"),
    [
        ("skipped", "skipped", ["skipped-1", "skipped-2"]),
        ("failed", "failed", ["failed-1", "lost-1"]),
        ("lost", "failed", ["lost-2"]),
    ],
)
def test_a_section_whose_lock_does_not_succeed_leaves_no_meeting_locked(
    ran: Ran, dingtalk: Sandbox, section: str, state: str, meetings: list[str]
) -> None:
    assert ran.state(f"lock_{section}") == state
    for meeting in meetings:
        assert ran.actions(meeting) == ["lock", "unlock"]
        assert not dingtalk.conference(meeting).locked


def test_the_xcom_of_a_lock_says_what_may_be_locked_too(ran: Ran, dingtalk: Sandbox) -> None:
    assert ran.state("unlock_uncertain") == "success"
    assert ran.actions("lost-3") == ["lock", "unlock"]
    assert not dingtalk.conference("lost-3").locked


@pytest.mark.parametrize("task", ["of_nobody", "of_no_title"])
def test_a_filter_that_comes_to_be_nothing_locks_nothing(ran: Ran, task: str) -> None:
    assert ran.state(task) == "failed"
    assert [call for call in ran.calls if call.name == "list"] == []


def test_if_no_meeting_was_found_there_is_nothing_to_unlock(ran: Ran) -> None:
    assert (ran.state("no_meeting"), ran.state("unlock_no_meeting")) == ("success", "success")
    assert ran.result("no_meeting")["conference_id"] is None
    unlocked = ran.result("unlock_no_meeting")
    assert unlocked == {
        "conference_id": None,
        "action": "unlock",
        "success": True,
        "attempts": 0,
        "request_id": None,
    }


def test_a_meeting_that_was_found_and_refused_is_named(ran: Ran) -> None:
    result = ran.result("found")
    assert (result["conference_id"], result["success"]) == ("sandbox-room", False)
    assert ran.link("found", JoinConferenceLink()).endswith("/1234567890")


def test_a_mapped_task_of_a_list_is_named_by_its_length(ran: Ran) -> None:
    assert [str(ran.instances["lists", index].state) for index in range(2)] == ["success"] * 2
    names = [ran.instances["lists", index].rendered_map_index for index in range(2)]
    assert names == ["20 meetings", "1 meetings"]
    # SQLite takes any length; PostgreSQL takes 250.
    assert ran.instances["long", 0].rendered_map_index == "9" * 250


def test_a_task_that_pushes_no_xcom_pushes_none_when_it_fails(ran: Ran) -> None:
    assert ran.state("unseen") == "failed"
    assert ("unseen", -1, "return_value") not in ran.xcoms


# Tasks whose ``execute`` is called directly, as one try of several.


class Instance(SimpleNamespace):
    """A task instance of one try, which keeps what is pushed."""

    dag_id, run_id, task_id, map_index = "dag", "run", "task", -1

    def xcom_push(self, key: str, value: Any) -> None:
        self.__dict__.setdefault("xcoms", {})[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.xcoms.get(key)


class Store(dict[str, Any]):
    """A store for the state of a task, as Airflow 3.3 has one."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        del self[key]


@pytest.fixture
def store() -> Store:
    """Return a store that the tries of a task share."""
    return Store()


def a_try(number: int = 1, of: int = 3, store: Any = None) -> Any:
    context: Any = {"ti": Instance(try_number=number, max_tries=of - 1, xcoms={})}
    return context if store is None else {**context, "task_state_store": store}


def lock(conference_id: Any, **arguments: Any) -> LockConferenceOperator:
    return LockConferenceOperator(task_id="task", conference_id=conference_id, **arguments)


def locks_of(sandbox: Sandbox, meeting: str) -> int:
    return [call.conference_id for call in sandbox.calls_of("lock")].count(meeting)


def unlocked(sandbox: Sandbox) -> list[str]:
    return sorted(call.conference_id or "" for call in sandbox.calls_of("unlock"))


def test_a_retry_continues_where_the_try_before_it_ended(sandbox: Sandbox, conn: Any, store: Store) -> None:
    fine, flaky = sandbox.create_conference(), sandbox.create_conference()
    sandbox.fail(Fault(call="lock", path=flaky, code="systemError", times=1))
    with pytest.raises(DingTalkError):
        lock([fine, flaky], max_attempts=1).execute(a_try(1, store=store))
    assert [one["success"] for one in lock([fine, flaky]).execute(a_try(2, store=store))] == [True, True]
    assert (locks_of(sandbox, fine), locks_of(sandbox, flaky)) == (1, 2)


def test_without_a_store_a_retry_asks_for_all_again(sandbox: Sandbox, conn: Any) -> None:
    fine, flaky = sandbox.create_conference(), sandbox.create_conference()
    sandbox.fail(Fault(call="lock", path=flaky, code="systemError", times=1))
    with pytest.raises(DingTalkError):
        lock([fine, flaky], max_attempts=1).execute(a_try(1))
    assert [one["success"] for one in lock([fine, flaky]).execute(a_try(2))] == [True, True]
    assert (locks_of(sandbox, fine), locks_of(sandbox, flaky)) == (2, 2)


def test_a_task_that_is_cleared_asks_for_all_again(sandbox: Sandbox, conn: Any, store: Store) -> None:
    fine, flaky = sandbox.create_conference(), sandbox.create_conference()
    sandbox.fail(Fault(call="lock", path=flaky, code="systemError", times=1))
    with pytest.raises(DingTalkError):
        lock([fine, flaky], max_attempts=1).execute(a_try(1, of=3, store=store))
    lock([fine, flaky]).execute(
        a_try(2, of=4, store=store)
    )  # Airflow leaves as many tries as there were at first
    assert locks_of(sandbox, fine) == 2


def test_what_is_completed_of_one_dingtalk_is_not_completed_of_another(
    sandbox: Sandbox, conn: Callable[..., None], store: Store
) -> None:
    with Sandbox() as other:
        for each in (sandbox, other):
            each.create_conference(conference_id="same")
        sandbox.fail(Fault(call="lock", path="nobody", code="systemError"))
        with pytest.raises(DingTalkError):
            lock(["same", "nobody"], max_attempts=1, on_error={"roomNotFound": "retry"}).execute(
                a_try(1, store=store)
            )
        conn(host=other.url)
        lock(["same"]).execute(a_try(2, store=store))
        assert locks_of(other, "same") == 1


def test_what_is_completed_is_kept_however_much_it_is(sandbox: Sandbox, conn: Any, store: Store) -> None:
    refused = "y" * 400
    meetings = [sandbox.create_conference() for _ in range(150)]
    flaky = sandbox.create_conference()
    sandbox.fail(Fault(call="lock", path=flaky, code="systemError", times=1))
    for meeting in meetings:
        sandbox.fail(
            Fault(call="lock", path=meeting, status=400, body={"code": "noPermission", "message": refused})
        )
    with pytest.raises(DingTalkError):
        lock([*meetings, flaky], max_attempts=1).execute(a_try(1, store=store))
    with pytest.raises(AirflowFailException):
        lock([*meetings, flaky]).execute(a_try(2, store=store))
    assert [locks_of(sandbox, meeting) for meeting in meetings] == [1] * 150


class _OutOfOrder:
    """A store for the state of a task, as Airflow 3.3 has one, whose server is down."""

    def get(self, key: str) -> Any:
        raise RuntimeError("503 from the API server")

    set = delete = get


def test_a_store_that_is_out_of_order_costs_one_warning_and_no_lock(
    sandbox: Sandbox, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    meetings = [sandbox.create_conference() for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        results = lock(meetings).execute({**a_try(), "task_state_store": _OutOfOrder()})
    assert all(one["success"] for one in results)
    said = [line for line in caplog.messages if "503 from the API server" in line]
    assert len(said) == 1


@pytest.mark.parametrize("outcome", ["fail", "succeed"])
def test_a_retry_that_gets_no_token_keeps_the_completed_meetings(
    sandbox: Sandbox, conn: Callable[..., None], outcome: str, store: Store
) -> None:
    fine, flaky = sandbox.create_conference(), sandbox.create_conference()
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


# A section whose lock ends at some try


@pytest.mark.parametrize("number", [1, 2])
def test_a_section_keeps_nothing_between_tries_and_locks_all_again(
    sandbox: Sandbox, conn: Any, store: Store, number: int
) -> None:
    sure, lost = sandbox.create_conference(), sandbox.create_conference()
    sandbox.fail(Fault(call="lock", path=lost, drop=True, after=True, times=1))
    arguments: Any = {"max_attempts": 1, "unlock_on_failure": True}
    with pytest.raises(DingTalkError):
        lock([sure, lost], **arguments).execute(a_try(number, of=2, store=store))
    assert unlocked(sandbox) == sorted([lost, sure])
    assert not sandbox.conference(sure).locked
    assert not store
    lock([sure, lost], **arguments).execute(a_try(number + 1, store=store))
    assert (locks_of(sandbox, sure), sandbox.conference(lost).locked) == (2, True)


@pytest.mark.parametrize("meetings", [1, 3])
@pytest.mark.parametrize("begun", ["another try", "a try that has not pushed yet", "an expired token"])
def test_a_superseded_try_of_a_section_does_not_unlock_what_its_successor_has_locked(
    sandbox: Sandbox,
    conn: Any,
    meetings: int,
    begun: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = [sandbox.create_conference() for _ in range(meetings)]
    sandbox.fail(Fault(call="lock", path=ids[-1], drop=True, after=True))
    context = a_try(1)
    instance = context["ti"]

    class RefusedError(Exception):
        """What Airflow 3 raises for a response of its API server."""

        error = SimpleNamespace(detail={"status_code": 403})

    def pull(**_: Any) -> Any:
        if begun == "an expired token":
            raise RefusedError
        return "of another try" if begun == "another try" else None

    instance.xcom_pull = pull
    with pytest.raises(DingTalkError):
        lock(ids if meetings > 1 else ids[0], unlock_on_failure=True, max_attempts=1).execute(context)
    assert unlocked(sandbox) == []
    said = "".join(capfd.readouterr()) + caplog.text
    assert "another try of this task: nothing is rolled back" in said
    assert "Rolling back" not in said


def test_a_section_is_rolled_back_if_airflow_cannot_be_asked_for_another_try(
    sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    fine = sandbox.create_conference()
    context = a_try(1)
    context["ti"].xcom_pull = None  # whatever goes wrong
    with pytest.raises(AirflowFailException):
        lock([fine, "sandbox-noPermission"], unlock_on_failure=True).execute(context)
    assert unlocked(sandbox) == [fine]
    assert "Rolling back: unlocking 1 meetings" in "".join(capfd.readouterr()) + caplog.text


@pytest.mark.parametrize("begun", [True, False])
def test_a_block_that_raises_unlocks_unless_its_try_is_superseded(
    sandbox: Sandbox, conn: Any, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    meeting, context = sandbox.create_conference(), a_try()
    monkeypatch.setattr(roll_back, "get_current_context", lambda: context)

    def work() -> None:
        with DingTalkConferenceHook().locked(meeting):
            if begun:
                context["ti"].xcoms = {}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert sandbox.conference(meeting).locked == begun


def test_outside_a_section_a_failed_lock_keeps_the_meetings_it_locked(sandbox: Sandbox, conn: Any) -> None:
    fine = sandbox.create_conference()
    with pytest.raises(AirflowFailException):
        lock([fine, "sandbox-noPermission"]).execute(a_try())
    assert sandbox.conference(fine).locked


def test_what_cannot_be_unlocked_again_is_named_in_the_log(
    sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    stuck = sandbox.create_conference()
    sandbox.fail(Fault(call="unlock", path=stuck, code="noPermission"))
    with pytest.raises(AirflowFailException):
        lock([stuck, "sandbox-noPermission"], unlock_on_failure=True).execute(a_try())
    assert f"Still locked: {stuck}. To unlock by hand" in "".join(capfd.readouterr()) + caplog.text


class Interrupted(BaseException):
    """What the handler of a signal raises: so does Airflow's execution timeout."""


def _interrupt_when_locked(sandbox: Sandbox, meetings: list[str], signum: int) -> None:
    """Send this process a signal once meetings are locked."""

    def watch() -> None:
        while not all(sandbox.conference(meeting).locked for meeting in meetings):
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    threading.Thread(target=watch, daemon=True).start()


@pytest.fixture
def interrupting() -> Iterator[None]:
    """Raise an exception where SIGALRM comes, as Airflow's timeout does."""

    def handle(number: int, frame: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("section", "tries"), [(False, 2), (False, 1), (True, 2)])
def test_an_interrupted_task_undoes_what_was_being_locked_and_all_that_no_try_will_take_up(
    sandbox: Sandbox, conn: Any, interrupting: None, section: bool, tries: int
) -> None:
    meetings = [sandbox.create_conference() for _ in range(8)]
    for slow in meetings[-4:]:  # locked, and the answer is long in coming
        sandbox.fail(Fault(call="lock", path=slow, delay=60.0, after=True))
    task = lock(meetings, concurrency=4, unlock_on_failure=section)
    _interrupt_when_locked(sandbox, meetings, signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        task.execute(a_try(of=tries))
    assert time.monotonic() - began < 45
    still = [meeting for meeting in meetings if sandbox.conference(meeting).locked]
    assert still == ([] if section or tries == 1 else meetings[:4])


@contextmanager
def ended_by_airflow(task: Any) -> Iterator[None]:
    """Handle SIGTERM as Airflow does, and expect that the task is ended by it."""
    before = signal.signal(signal.SIGTERM, killer_of(task))
    try:
        with pytest.raises(BaseException) as raised:  # noqa: PT011
            yield
        assert type(raised.value).__name__ in {"SystemExit", "AirflowTaskTerminated"}
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_task_that_airflow_ends_in_a_section_unlocks_what_it_has_locked(
    sandbox: Sandbox, conn: Any
) -> None:
    meetings = [sandbox.create_conference() for _ in range(8)]
    for slow in meetings[-4:]:
        sandbox.fail(Fault(call="lock", path=slow, delay=60.0, after=True))
    task = lock(meetings, concurrency=4, unlock_on_failure=True)
    _interrupt_when_locked(sandbox, meetings, signal.SIGTERM)
    with ended_by_airflow(task):
        task.execute(a_try())
    assert [meeting for meeting in meetings if sandbox.conference(meeting).locked] == []
    assert all(locks_of(sandbox, one) == 1 for one in meetings[:4])
    lock(meetings[:4]).execute(a_try(2))
    assert all(locks_of(sandbox, one) == 2 for one in meetings[:4]), "a retry locks them again"


def test_a_second_signal_does_not_stop_the_unlocking_nor_what_the_retry_must_know(
    sandbox: Sandbox, conn: Any
) -> None:
    meetings = [sandbox.create_conference() for _ in range(4)]
    sandbox.fail(Fault(call="lock", path=meetings[-1], delay=20.0, after=True))
    sandbox.fail(Fault(call="unlock", delay=0.5))
    task = lock(meetings, unlock_on_failure=True)
    _interrupt_when_locked(sandbox, meetings, signal.SIGTERM)

    def again() -> None:
        while len(sandbox.calls_of("unlock")) < 2:  # the first undoes the lock in flight
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=again, daemon=True).start()
    with ended_by_airflow(task):
        task.execute(a_try())
    assert [meeting for meeting in meetings if sandbox.conference(meeting).locked] == []
    sandbox.heal()
    lock(meetings).execute(a_try(2))
    assert all(sandbox.conference(meeting).locked for meeting in meetings)


def test_unlocking_again_is_tried_as_often_as_any_call_whatever_the_task_allows_its_own(
    sandbox: Sandbox, conn: Any
) -> None:
    fine = sandbox.create_conference()
    sandbox.fail(Fault(call="unlock", code="systemError", times=2))
    with pytest.raises(AirflowFailException):
        lock([fine, "sandbox-noPermission"], unlock_on_failure=True, max_attempts=1).execute(a_try())
    assert not sandbox.conference(fine).locked


# What is unlocked


def unlock(conference_id: Any) -> Any:
    return UnlockConferenceOperator(task_id="task", conference_id=conference_id)


def test_the_xcom_of_an_unlock_names_those_that_it_did_not_unlock_too(sandbox: Sandbox, conn: Any) -> None:
    meetings = [sandbox.create_conference() for _ in range(2)]
    lock(meetings).execute(a_try())
    sandbox.fail(Fault(call="unlock", path=meetings[1], code="noPermission", times=1))
    context = a_try()
    with pytest.raises(AirflowFailException):
        unlock(meetings).execute(context)
    unlock(context["ti"].xcoms["return_value"]).execute(a_try())
    assert not any(sandbox.conference(meeting).locked for meeting in meetings)


def test_the_xcoms_of_mapped_locks_of_lists_say_what_to_unlock(sandbox: Sandbox, conn: Any) -> None:
    first, second, third = (sandbox.create_conference() for _ in range(3))
    xcoms = [lock([first, second]).execute(a_try()), lock([third]).execute(a_try())]
    results = unlock(xcoms).execute(a_try())
    assert [one["conference_id"] for one in results] == [first, second, third]


# Throttling


def test_while_dingtalk_asks_to_wait_no_other_meeting_is_tried(sandbox: Sandbox, conn: Any) -> None:
    meetings = [sandbox.create_conference() for _ in range(30)]
    sandbox.fail(Fault(call="lock", code="systemBusy", headers={"Retry-After": "2"}, times=1))
    results = DingTalkConferenceHook().lock_conferences(meetings, concurrency=3)
    assert all(one.success for one in results)
    times = sorted(call.time for call in sandbox.calls_of("lock"))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) > 1.5
    # The first is refused; two more may be under way.
    assert gaps.index(max(gaps)) <= 2


@pytest.mark.parametrize("max_attempts", [1, 5])
def test_a_wait_that_is_too_long_ends_it_for_all_that_are_left(
    sandbox: Sandbox, conn: Any, max_attempts: int
) -> None:
    meetings = [sandbox.create_conference() for _ in range(30)]
    sandbox.fail(Fault(call="lock", code="systemBusy", headers={"Retry-After": "300"}, times=1))
    hook = DingTalkConferenceHook(max_attempts=max_attempts)
    results = hook.lock_conferences(meetings, concurrency=1)
    assert [one.success for one in results] == [False] * 30
    assert {one.error and one.error.retry_after for one in results} == {300.0}
    assert len(sandbox.calls_of("lock")) == 1


# Parameters


@pytest.mark.parametrize("name", ["title_pattern", "creator_id"])
def test_a_filter_that_is_none_is_invalid(conn: Any, sandbox: Sandbox, name: str) -> None:
    task = LockConferenceOperator(task_id="x", running=True, **{name: None})  # type: ignore[arg-type]
    with pytest.raises(AirflowFailException, match=f"{name}: it was rendered as None"):
        task.execute({})
    with pytest.raises(InvalidInputError, match=f"{name}: for running meetings only"):
        UnlockConferenceOperator(task_id="x", conference_id="1", **{name: "x"})  # type: ignore[arg-type]

"""The sensor: in a real Airflow, in each of its modes, and what it does with each response."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AIRFLOW_V_3_0_PLUS,
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)
from runs import LEVELS, Instance, Ran, connected_sandbox, default_args_of, run_dag
from waiting import event_of

from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError, InvalidInputError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.links import LINKS_KEY
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from airflow_provider_dingconf.sensors import ConferenceSensor

pytestmark = pytest.mark.usefixtures("conn")
INTERNATIONAL = "https://help.dingtalk.io/open/development"
QUERY_PAGE = f"{INTERNATIONAL}/querying-video-conference-information"

DAG_FILE = """
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.sensors import ConferenceSensor

with DAG(
    "waiting",
    schedule=None,
    default_args={"retries": 3, "retry_delay": timedelta(0), "retry_exponential_backoff": False},
    params={"room": "123 456-7890"},
) as dag:
    by_code = ConferenceSensor(task_id="by_code", room_code="{{ params.room }}", poke_interval=0.1)
    LockConferenceOperator(task_id="lock_by_code", conference_id=by_code.output)
    ConferenceSensor(task_id="has_ended", conference_id="sandbox-ended", status="ended", poke_interval=0.1)
    ConferenceSensor(task_id="never_starts", conference_id="sandbox-ended", poke_interval=0.1)
    ConferenceSensor(task_id="unknown", conference_id="nobody", poke_interval=0.1)
    ConferenceSensor(
        task_id="too_late", conference_id="sandbox-notStarted", poke_interval=0.1, timeout=0.5, retries=0
    )
    ConferenceSensor(task_id="faulty", conference_id="faulty", poke_interval=0.1)

    for mode, how in {
        "poking": {},
        "rescheduled": {"mode": "reschedule"},
        "deferred": {"deferrable": True},
    }.items():
        wait = ConferenceSensor(task_id=mode, conference_id=mode, poke_interval=0.2, **how)
        LockConferenceOperator(task_id=f"lock_{mode}", conference_id=wait.output)
        ConferenceSensor(
            task_id=f"silent_{mode}", conference_id=wait.output, poke_interval=0.2, do_xcom_push=False, **how
        )
        ConferenceSensor(task_id=f"busy_{mode}", conference_id=f"busy-{mode}", poke_interval=0.2, **how)
        ConferenceSensor(
            task_id=f"delayed_{mode}", conference_id=f"delayed-{mode}", delay=timedelta(seconds=1), **how
        )
        ConferenceSensor(task_id=f"soft_{mode}", conference_id="nobody", soft_fail=True, **how)
        ConferenceSensor.partial(task_id=f"mapped_{mode}", poke_interval=0.2, **how).expand(
            conference_id=[wait.output, "late-" + mode]
        )
"""

MODES = ["poking", "rescheduled", "deferred"]


@pytest.fixture(scope="module")
def ran(airflow_db: None) -> Iterator[Ran]:
    with connected_sandbox() as sandbox:
        for kind in ("", "late-", "busy-", "delayed-"):
            for mode in MODES:
                sandbox.create_conference(conference_id=f"{kind}{mode}")
        sandbox.create_conference(conference_id="faulty")
        sandbox.create_conference(conference_id="room-now", room_code="1234567890")
        sandbox.fail(
            Fault(call="info", path="/faulty$", code="systemBusy", headers={"Retry-After": "1"}, times=1)
        )
        for mode in MODES:
            for meeting in (mode, f"late-{mode}"):  # the first response is that it has not started
                not_yet = {"confInfo": {"conferenceId": meeting, "status": 0}}
                sandbox.fail(Fault(call="info", path=f"/{meeting}$", body=not_yet, times=1))
            sandbox.fail(Fault(call="info", path=f"/busy-{mode}$", code="systemBusy", times=1))
        yield Ran.of(run_dag("waiting", DAG_FILE), sandbox)


def rescheduled(ran: Ran, task: str) -> int:
    """Return how often Airflow has put a task off, in the state UP_FOR_RESCHEDULE."""
    from airflow.models.taskreschedule import TaskReschedule
    from airflow.utils.session import create_session

    with create_session() as session:
        rows = session.query(TaskReschedule).all()
        if AIRFLOW_V_3_0_PLUS:
            return len([row for row in rows if str(row.ti_id) == str(ran.instances[task, -1].id)])
        run_id = ran.instances[task, -1].run_id
        return len([row for row in rows if (row.task_id, row.run_id) == (task, run_id)])


def test_the_xcom_of_a_sensor_is_the_meeting_that_a_lock_takes(ran: Ran) -> None:
    assert ran.states("by_code", "lock_by_code", "has_ended") == ["success"] * 3
    assert ran.result("by_code")["conference_id"] == ran.result("lock_by_code")["conference_id"] == "room-now"
    assert ran.result("has_ended")["status"] == "ended"


@pytest.mark.parametrize(
    ("task", "state"),
    [
        pytest.param("never_starts", "skipped", id="a meeting that ends before its start is seen"),
        pytest.param("unknown", "failed", id="an unknown meeting"),
        pytest.param("too_late", "failed", id="a timeout"),
    ],
)
def test_a_wait_that_cannot_succeed_ends_at_once_or_at_its_timeout(ran: Ran, task: str, state: str) -> None:
    assert (ran.state(task), ran.tries(task)) == (state, 1)


def test_a_sensor_pokes_again_after_a_throttle_when_dingtalk_allows_it(ran: Ran) -> None:
    assert (ran.state("faulty"), ran.tries("faulty")) == ("success", 1)
    first, second = ran.calls_of("faulty", "info")
    assert second.time - first.time >= 1


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_a_sensor_waits_until_the_meeting_starts_and_its_xcom_describes_it(
    ran: Ran, mode: str
) -> None:
    assert (ran.state(mode), ran.tries(mode)) == ("success", 1)
    xcom = ran.result(mode)
    assert (xcom["conference_id"], xcom["status"]) == (mode, "started")
    for name in ("join_url", "creator_id", "creator_nick", "room_code", "biz_type", "start_time"):
        assert xcom[name], name
    assert ran.states(f"lock_{mode}", f"silent_{mode}") == ["success", "success"]
    assert ran.result(f"silent_{mode}") is None, "it has do_xcom_push=False"
    assert len(ran.calls_of(mode, "info")) == 4  # two by this sensor, and one by each sensor after it
    if mode != "deferred":
        assert ran.links(mode) == [QUERY_PAGE, "", xcom["join_url"]]


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_mapped_sensors_are_shown_by_their_meetings(ran: Ran, mode: str) -> None:
    mapped = [ran.instances[f"mapped_{mode}", index] for index in (0, 1)]
    assert [str(one.state) for one in mapped] == ["success", "success"]
    assert [one.rendered_map_index for one in mapped] == [mode, f"late-{mode}"]


def test_a_rescheduled_sensor_leaves_its_slot_and_pokes_again(ran: Ran) -> None:
    assert [rescheduled(ran, task) for task in ("rescheduled", "busy_rescheduled")] == [1, 1]
    assert [rescheduled(ran, task) for task in ("poking", "deferred")] == [0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_the_wait_outlasts_a_throttle_and_soft_fail_skips_what_would_fail(
    ran: Ran, mode: str
) -> None:
    assert (ran.state(f"busy_{mode}"), ran.tries(f"busy_{mode}")) == ("success", 1)
    assert ran.state(f"soft_{mode}") == "skipped"


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_a_delay_counts_from_the_start(ran: Ran, mode: str) -> None:
    assert ran.state(f"delayed_{mode}") == "success"
    start = datetime.fromisoformat(ran.result(f"delayed_{mode}")["start_time"])
    assert timedelta(seconds=1) <= ran.instances[f"delayed_{mode}", -1].end_date - start
    assert len(ran.calls_of(f"delayed-{mode}", "info")) <= 2


def test_a_sensor_that_met_an_error_links_to_the_error_codes(ran: Ran) -> None:
    assert ran.links("unknown") == [QUERY_PAGE, f"{INTERNATIONAL}/server-api-error-codes-1", ""]


# One poke


def sensor(conference_id: Any = "sandbox-open", **arguments: Any) -> ConferenceSensor:
    return ConferenceSensor(task_id="x", conference_id=conference_id, **arguments)


def test_a_poke_is_one_call(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="info", code="systemError"))
    task = sensor()
    assert not task.poke({})
    assert task.poke_interval == 60, "each call counts against the monthly quota"
    assert len(sandbox.calls_of("info")) == 1


def test_a_token_that_is_refused_is_renewed_within_the_poke(sandbox: Sandbox) -> None:
    task = sensor()
    assert task.poke({})
    sandbox.revoke_tokens()
    assert task.poke({})
    assert [call.status for call in sandbox.calls_of("info")] == [200, 400, 200]


def test_a_rescheduled_sensor_comes_back_when_dingtalk_allows_it(airflow_db: None, sandbox: Sandbox) -> None:
    from airflow.exceptions import AirflowRescheduleException

    sandbox.fail(Fault(call="info", code="systemBusy", headers={"Retry-After": "300"}))
    ti: Any = Instance()
    with pytest.raises(AirflowRescheduleException) as raised:
        sensor(mode="reschedule").execute({"ti": ti})
    assert 250 < (raised.value.reschedule_date - datetime.now(timezone.utc)).total_seconds() < 301


def with_start(sandbox: Sandbox, seconds_ago: float | None) -> None:
    """Let each meeting have started so many seconds ago, or at an unknown time."""
    facts: dict[str, Any] = {"conferenceId": "m", "status": 2}
    if seconds_ago is not None:
        facts["startTime"] = int((time.time() - seconds_ago) * 1000)
    sandbox.clear()
    sandbox.fail(Fault(call="info", body={"confInfo": facts}))


def test_a_poking_sensor_with_a_delay_sleeps_until_it_is_over_and_makes_no_further_call(
    sandbox: Sandbox,
) -> None:
    with_start(sandbox, 200)
    task = sensor(delay=timedelta(minutes=5))
    assert not task.poke({})
    assert 0 < task._get_next_poke_interval(0, lambda: 0.0, 1) <= 100
    sandbox.clear()
    sandbox.fail(Fault(code="confClosed"))  # it has ended meanwhile
    assert not task.poke({})
    assert sandbox.calls == []


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize("ago", [300.0, None])
def test_a_delay_that_is_over_ends_the_wait_in_each_mode(
    sandbox: Sandbox, ago: float | None, mode: str
) -> None:
    with_start(sandbox, ago)
    task = sensor(delay=300 if ago else 0.2, mode=mode)
    if ago is None and mode == "poke":
        assert not task.poke({})
        time.sleep(0.2)
    done = task.poke({})
    assert done
    assert done.xcom_value["conference_id"] == "m"


def test_a_sensors_log_says_what_it_waits_for_and_the_meetings_status(
    capfd: pytest.CaptureFixture[str],
) -> None:
    sensor("sandbox-notStarted").poke({})
    ConferenceSensor(task_id="x", room_code="1").poke({})
    said = [line for line in "".join(capfd.readouterr()).splitlines() if "waiting until" in line]
    assert "waiting until conference_id sandbox-notStarted has started: sandbox-notStarted (" in said[0]
    assert "'not_started'" in said[0] or "not_started)" in said[0]
    assert "waiting until room_code 1 has started: no meeting is running" in said[1]


# When the DAG is parsed

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"status": "locked"}, "status: 'locked' is not 'started' or 'ended'"),
    ({"delay": -1}, "delay: -1 is not a timedelta or a number of seconds"),
    ({"delay": "5"}, "delay: '5' is not"),
    ({"delay": timedelta.max}, "at most a year"),
    ({"delay": 10**400}, "at most a year"),
    ({"deferrable": "False"}, "deferrable: 'False' is not True or False"),
    ({"delay": 5, "status": "ended"}, "it needs status='started'"),
    ({"on_error": {"confClose": "fail"}}, "did you mean 'confClosed'?"),
]
NAMES: list[tuple[dict[str, Any], str]] = [
    ({"conference_id": "a", "room_code": "1"}, "conference_id and room_code are given"),
    ({"room_code": "1", "status": "ended"}, "give the conference_id"),
]
NO_NAME = "no meeting is given; give one of conference_id, room_code, schedule_conference_id"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, NO_NAME), *NAMES, *(({"conference_id": "a", **wrong}, said) for wrong, said in MISTAKES)],
)
def test_an_invalid_sensor_is_an_error_of_the_dag_file(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        ConferenceSensor(task_id="x", **arguments)
    assert said in str(raised.value)


@pytest.mark.parametrize(("wrong", "said"), [*MISTAKES, *NAMES])
@pytest.mark.parametrize("level", [None, *LEVELS])
def test_a_mapped_sensor_is_checked_when_the_dag_is_parsed(
    wrong: dict[str, Any], said: str, level: str | None
) -> None:
    given = {} if level else wrong
    with pytest.raises(InvalidInputError) as raised, default_args_of(level or "", wrong) as default_args:
        ConferenceSensor.partial(task_id="x", default_args=default_args, **given)
    assert said in str(raised.value)


@pytest.mark.parametrize("level", LEVELS)
def test_a_mapped_sensor_takes_all_its_parameters_from_default_args(level: str) -> None:
    given = {"status": "ended", "poke_interval": 5.0, "on_error": {"confClosed": "fail"}, "deferrable": True}
    given |= {"timeout": 7.0, "mode": "reschedule"}
    with default_args_of(level, given) as default_args:
        mapped = ConferenceSensor.partial(task_id="x", default_args=default_args).expand(conference_id=["a"])
    made = mapped.unmap({"conference_id": "a"})
    assert {name: getattr(made, name) for name in given} == given


# The triggerer


def deferred(task: ConferenceSensor) -> Any:
    with pytest.raises(TaskDeferred) as raised:
        task.execute({})
    return raised.value


@pytest.mark.parametrize("lenient", [{"soft_fail": True}, {"never_fail": True}, {}], ids=str)
def test_a_deferrable_sensor_that_would_fail_is_skipped_with_soft_fail_or_never_fail(
    sandbox: Sandbox, lenient: dict[str, Any]
) -> None:
    task = sensor("sandbox-notStarted", deferrable=True, on_error={"confClosed": "fail"}, **lenient)
    closed = {"error": ConferenceClosedError("said", code="confClosed").as_dict()}
    deferred(task)
    for fail in (
        lambda: task.resume_execution("__fail__", {"error": "Trigger timeout"}, {}),
        lambda: task.resume_execution("resume", {"event": closed}, {}),
        lambda: sensor("nobody", deferrable=True, **lenient).execute({}),
    ):
        with pytest.raises(AirflowException) as raised:
            fail()
        assert isinstance(raised.value, AirflowSkipException) is bool(lenient)


@pytest.mark.parametrize(
    ("lenient", "expected"),
    [
        ({"silent_fail": True}, TaskDeferred),
        ({"never_fail": True}, AirflowSkipException),
        ({}, RuntimeError),
    ],
    ids=str,
)
def test_a_fault_of_airflow_at_the_first_poke_ends_as_in_airflows_own_sensors(
    lenient: dict[str, Any], expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_connection(*_: Any, **__: Any) -> Any:
        raise RuntimeError("503 from the API server")

    monkeypatch.setattr(DingTalkConferenceHook, "get_connection", get_connection)
    with pytest.raises(expected):
        sensor(deferrable=True, **lenient).execute({})


def test_a_deferrable_sensor_waits_in_the_triggerer(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference(status="not_started")
    task = sensor(meeting, deferrable=True, poke_interval=0.3, timeout=60)
    deferral = deferred(task)
    assert deferral.trigger.seen == "not_started"
    assert deferral.timeout.total_seconds() == 60
    threading.Timer(0.3, sandbox.start, [meeting]).start()
    event = asyncio.run(asyncio.wait_for(event_of(deferral.trigger), 60))
    ti: Any = Instance()
    xcom = getattr(task, deferral.method_name)({"ti": ti}, event, **deferral.kwargs)
    assert xcom["conference_id"] == meeting
    kept = {"documentation": QUERY_PAGE, "join": xcom["join_url"]}
    assert (getattr(task, LINKS_KEY) if AIRFLOW_V_3_0_PLUS else ti.xcoms[LINKS_KEY]) == kept


def test_the_timeout_of_a_deferrable_sensor_leads_to_no_date_after_the_year_9999(sandbox: Sandbox) -> None:
    task = sensor(sandbox.create_conference(status="not_started"), deferrable=True, timeout=timedelta.max)
    timeout = deferred(task).timeout
    assert datetime.now(timezone.utc) + timeout > datetime(2100, 1, 1, tzinfo=timezone.utc)


def test_a_deferrable_sensor_whose_meeting_has_started_defers_only_for_a_delay(sandbox: Sandbox) -> None:
    meeting = sandbox.create_conference()
    assert sensor(meeting, deferrable=True).execute({})["conference_id"] == meeting
    assert len(sandbox.calls_of("info", "query")) == 1
    with_start(sandbox, 0)
    deferral = deferred(sensor("m", delay=300, deferrable=True))
    assert (deferral.trigger.delay, deferral.trigger.found["conference_id"]) == (300, "m")


def test_the_error_that_ended_the_wait_in_the_triggerer_gives_the_task_its_state() -> None:
    event = {"error": ConferenceClosedError("said", code="confClosed", request_id="R-1").as_dict()}
    with pytest.raises(AirflowSkipException, match="request id R-1"):
        sensor().resume({}, event)
    with pytest.raises(AirflowFailException):
        sensor(on_error={"confClosed": "fail"}).resume({}, event)
    assert sensor(on_error={"confClosed": "succeed"}).resume({}, event) is None


def test_a_deferred_sensor_holds_little_and_no_secret(sandbox: Sandbox) -> None:
    found = {"conference_id": sandbox.create_conference(status="not_started"), "title": "x" * 10_000}
    deferral = deferred(sensor(found, deferrable=True, on_error={"roomNotFound": "retry"}))
    arguments = deferral.trigger.serialize()[1]
    assert arguments["named"] == {"conference_id": found["conference_id"]}
    assert arguments["on_error"] == {"roomNotFound": "retry"}
    kept = json.dumps([arguments, deferral.kwargs])
    assert len(kept) < 500
    tokens = {call.header("x-acs-dingtalk-access-token") for call in sandbox.calls} - {None}
    assert tokens
    assert not [secret for secret in {sandbox.client_secret, *tokens} if secret in kept]

"""The sensor: in a real Airflow, in each of its modes, and what it does with each answer."""

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
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
    TaskGroup,
)
from runs import Ran, connected_sandbox, run_dag
from waiting import event_of

from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError, InvalidInputError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.links import LINKS_KEY
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from airflow_provider_dingconf.sensors import ConferenceSensor

INTERVAL = 0.3
INTERNATIONAL = "https://help.dingtalk.io/open/development"

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
    ConferenceSensor(task_id="has_started", conference_id="well-1", poke_interval=0.1)
    by_code = ConferenceSensor(task_id="has_started_by_code", room_code="{{ params.room }}", poke_interval=0.1)
    LockConferenceOperator(task_id="lock_what_has_started", conference_id=by_code.output)
    ConferenceSensor(task_id="has_ended", conference_id="sandbox-ended", status="ended", poke_interval=0.1)
    ConferenceSensor(task_id="in_vain", conference_id="sandbox-ended", poke_interval=0.1)
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
        ConferenceSensor(task_id=f"after_{mode}", conference_id=wait.output, poke_interval=0.2, **how)
        ConferenceSensor(
            task_id=f"silent_{mode}", conference_id="well-1", poke_interval=0.2, do_xcom_push=False, **how
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
        late = [f"late-{mode}" for mode in MODES]
        for meeting in (
            "well-1",
            "faulty",
            *MODES,
            *(f"busy-{mode}" for mode in MODES),
            *late,
            *(f"delayed-{mode}" for mode in MODES),
        ):
            sandbox.create_conference(meeting, conference_id=meeting)
        sandbox.create_conference(conference_id="room-now", room_code="1234567890")
        sandbox.fail(
            Fault(call="info", path="/faulty$", code="systemBusy", headers={"Retry-After": "1"}, times=1)
        )
        for meeting in [*MODES, *late]:  # the first answer is that it has not started
            not_yet = {"confInfo": {"conferenceId": meeting, "status": 0}}
            sandbox.fail(Fault(call="info", path=f"/{meeting}$", body=not_yet, times=1))
        for mode in MODES:
            sandbox.fail(Fault(call="info", path=f"/busy-{mode}$", code="systemBusy", times=1))
        yield Ran.of(run_dag("waiting", DAG_FILE), sandbox.calls)


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


def test_a_sensor_succeeds_when_it_is_so_with_the_meeting_as_its_xcom(ran: Ran) -> None:
    assert ran.state("has_started") == "success"
    assert ran.result("has_started")["conference_id"] == "well-1"
    assert ran.result("has_started_by_code")["conference_id"] == "room-now"
    assert ran.result("has_ended")["status"] == "ended"
    assert ran.state("lock_what_has_started") == "success"


def test_a_meeting_that_ends_before_its_start_is_seen_skips_the_task(ran: Ran) -> None:
    assert ran.state("in_vain") == "skipped"


def test_a_sensor_of_a_meeting_that_is_not_known_fails_at_once(ran: Ran) -> None:
    assert (ran.state("unknown"), ran.tries("unknown")) == ("failed", 1)


def test_a_sensor_gives_up_when_its_time_is_over(ran: Ran) -> None:
    assert ran.state("too_late") == "failed"


def test_a_sensor_goes_on_after_a_fault_that_passes_when_dingtalk_said(ran: Ran) -> None:
    assert (ran.state("faulty"), ran.tries("faulty")) == ("success", 1)
    first, second = ran.calls_of("faulty", "info")
    assert second.time - first.time >= 1


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_a_sensor_waits_until_the_meeting_starts_and_tells_all_of_it(
    ran: Ran, mode: str
) -> None:
    assert (ran.state(mode), ran.tries(mode)) == ("success", 1)
    told = ran.result(mode)
    assert (told["conference_id"], told["status"]) == (mode, "started")
    for name in ("join_url", "creator_id", "creator_nick", "room_code", "biz_type", "start_time"):
        assert told[name], name
    assert len(ran.calls_of(mode, "info")) == 4  # twice by this sensor, and once by each of those after it


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_mapped_sensors_are_shown_by_their_meetings(ran: Ran, mode: str) -> None:
    mapped = [ran.instances[f"mapped_{mode}", index] for index in (0, 1)]
    assert [str(one.state) for one in mapped] == ["success", "success"]
    assert [one.rendered_map_index for one in mapped] == [mode, f"late-{mode}"]


def test_a_rescheduled_sensor_leaves_its_slot_and_pokes_again(ran: Ran) -> None:
    assert [rescheduled(ran, task) for task in ("rescheduled", "busy_rescheduled")] == [1, 1]
    assert [rescheduled(ran, task) for task in ("poking", "deferred")] == [0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_sensors_xcom_names_the_meeting_for_what_follows(ran: Ran, mode: str) -> None:
    assert ran.state(f"lock_{mode}") == "success"
    assert ran.result(f"after_{mode}")["conference_id"] == mode


@pytest.mark.parametrize("mode", MODES)
def test_a_sensor_without_do_xcom_push_pushes_no_result(ran: Ran, mode: str) -> None:
    assert ran.state(f"silent_{mode}") == "success"
    assert ran.result(f"silent_{mode}") is None


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_a_fault_that_passes_is_waited_out(ran: Ran, mode: str) -> None:
    assert (ran.state(f"busy_{mode}"), ran.tries(f"busy_{mode}")) == ("success", 1)


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_a_delay_counts_from_the_start(ran: Ran, mode: str) -> None:
    assert ran.state(f"delayed_{mode}") == "success"
    start = datetime.fromisoformat(ran.result(f"delayed_{mode}")["start_time"])
    ended = ran.instances[f"delayed_{mode}", -1].end_date
    assert timedelta(seconds=1) <= ended - start
    assert len(ran.calls_of(f"delayed-{mode}", "info")) <= 2


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode_soft_fail_skips_what_would_fail(ran: Ran, mode: str) -> None:
    assert ran.state(f"soft_{mode}") == "skipped"


@pytest.mark.parametrize("mode", ["poking", "rescheduled"])
def test_a_sensor_links_to_the_meeting_it_has_found(ran: Ran, mode: str) -> None:
    assert ran.links(mode) == [
        f"{INTERNATIONAL}/querying-video-conference-information",
        "",
        ran.result(mode)["join_url"],
    ]


def test_a_sensor_that_met_an_error_links_to_the_error_codes(ran: Ran) -> None:
    links = [
        f"{INTERNATIONAL}/querying-video-conference-information",
        f"{INTERNATIONAL}/server-api-error-codes-1",
        "",
    ]
    assert ran.links("unknown") == links


class Instance:
    """What a sensor needs of a task instance."""

    max_tries = try_number = 0
    dag_id = task_id = run_id = "x"
    map_index = -1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def get_first_reschedule_date(self, _context: Any) -> None: ...

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


# One poke


@pytest.mark.parametrize("code", ["systemError", "systemBusy", "unreadableAnswer"])
def test_a_poke_is_one_call(sandbox: Sandbox, conn: Any, code: str) -> None:
    sandbox.fail(Fault(call="info", code=code))
    assert not ConferenceSensor(task_id="x", conference_id="sandbox-open").poke({})
    assert len(sandbox.calls_of("info")) == 1


def test_a_token_that_is_refused_is_renewed_within_the_poke(sandbox: Sandbox, conn: Any) -> None:
    sensor = ConferenceSensor(task_id="x", conference_id="sandbox-open")
    assert sensor.poke({})
    sandbox.revoke_tokens()
    assert sensor.poke({})
    assert [call.status for call in sandbox.calls_of("info")] == [200, 400, 200]


def test_a_rescheduled_sensor_comes_back_when_dingtalk_said(
    airflow_db: None, sandbox: Sandbox, conn: Any
) -> None:
    from airflow.exceptions import AirflowRescheduleException

    sandbox.fail(Fault(call="info", code="systemBusy", headers={"Retry-After": "300"}))
    sensor = ConferenceSensor(task_id="x", conference_id="sandbox-open", mode="reschedule")
    ti: Any = Instance()
    with pytest.raises(AirflowRescheduleException) as raised:
        sensor.execute({"ti": ti})
    assert 250 < (raised.value.reschedule_date - datetime.now(timezone.utc)).total_seconds() < 301


@pytest.mark.parametrize("how", [{"soft_fail": True}, {"never_fail": True}], ids=str)
def test_what_must_not_fail_is_skipped_in_the_triggerer_as_well(conn: Any, how: dict[str, bool]) -> None:
    event = {"error": ConferenceClosedError("said", code="confClosed").as_dict()}
    sensor = ConferenceSensor(task_id="x", conference_id="a", on_error={"confClosed": "fail"}, **how)
    with pytest.raises(AirflowSkipException):
        sensor.resume_execution("resume", {"event": event}, {})
    first = ConferenceSensor(task_id="x", conference_id="nobody", deferrable=True, **how)
    with pytest.raises(AirflowSkipException):
        first.execute({})


def with_start(sandbox: Sandbox, seconds_ago: float | None) -> None:
    """Let each meeting have started so many seconds ago, or nobody knows when."""
    facts: dict[str, Any] = {"conferenceId": "m", "status": 2}
    if seconds_ago is not None:
        facts["startTime"] = int((time.time() - seconds_ago) * 1000)
    sandbox.clear()
    sandbox.fail(Fault(call="info", body={"confInfo": facts}))


def test_a_poking_sensor_with_a_delay_sleeps_until_it_is_over_and_makes_no_further_call(
    sandbox: Sandbox, conn: Any
) -> None:
    with_start(sandbox, 200)
    sensor = ConferenceSensor(task_id="x", conference_id="m", delay=timedelta(minutes=5))
    assert not sensor.poke({})
    assert 0 < sensor._get_next_poke_interval(0, lambda: 0.0, 1) <= 100
    sandbox.clear()
    sandbox.fail(Fault(code="confClosed"))  # it has ended meanwhile
    assert not sensor.poke({})
    assert sandbox.calls == []


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize("ago", [300.0, None])
def test_a_delay_that_is_over_ends_the_wait_in_each_mode(
    sandbox: Sandbox, conn: Any, ago: float | None, mode: str
) -> None:
    with_start(sandbox, ago)
    sensor = ConferenceSensor(task_id="x", conference_id="m", delay=300 if ago else 0.2, mode=mode)
    if ago is None and mode == "poke":
        assert not sensor.poke({})
        time.sleep(0.2)
    done = sensor.poke({})
    assert done
    assert done.xcom_value["conference_id"] == "m"


def test_a_deferrable_sensor_hands_a_meeting_that_has_started_to_the_triggerer(
    sandbox: Sandbox, conn: Any
) -> None:
    with_start(sandbox, 0)
    wish = deferred(ConferenceSensor(task_id="x", conference_id="m", delay=300, deferrable=True))
    assert wish.trigger.delay == 300
    assert wish.trigger.found["conference_id"] == "m"


def test_a_sensors_log_says_what_it_waits_for_and_how_the_meeting_is(
    sandbox: Sandbox, conn: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    ConferenceSensor(task_id="x", conference_id="sandbox-notStarted").poke({})
    ConferenceSensor(task_id="x", room_code="1").poke({})
    said = [line for line in "".join(capfd.readouterr()).splitlines() if "waiting until" in line]
    assert "waiting until conference_id sandbox-notStarted has started: sandbox-notStarted (" in said[0]
    assert "'not_started'" in said[0] or "not_started)" in said[0]
    assert "waiting until room_code 1 has started: no meeting is running" in said[1]


# When the DAG is parsed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"conference_id": "a", "room_code": "1"}, "conference_id and room_code are given"),
        ({"conference_id": "a", "status": "locked"}, "status: 'locked' is not 'started' or 'ended'"),
        ({"room_code": "1", "status": "ended"}, "give the conference_id"),
        ({}, "no meeting is given; give one of conference_id, room_code, schedule_conference_id"),
        ({"conference_id": "a", "delay": -1}, "delay: -1 is not a timedelta or a number of seconds"),
        ({"conference_id": "a", "delay": "5"}, "delay: '5' is not"),
        ({"conference_id": "a", "delay": 5, "status": "ended"}, "it needs status='started'"),
        ({"conference_id": "a", "on_error": {"confClose": "fail"}}, "did you mean 'confClosed'?"),
    ],
)
def test_an_invalid_sensor_is_an_error_of_the_dag_file(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        ConferenceSensor(task_id="x", **arguments)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"status": "locked"}, "status: 'locked'"),
        ({"delay": -1}, "delay: -1"),
        ({"on_error": {"confClose": "fail"}}, "did you mean 'confClosed'?"),
        ({"status": "ended", "room_code": "1"}, "give the conference_id"),
    ],
)
@pytest.mark.parametrize("where", ["partial", "its default_args", "the DAG's", "the group's"])
def test_a_mapped_sensor_is_checked_when_the_dag_is_parsed(
    wrong: dict[str, Any], said: str, where: str
) -> None:
    own = {"its default_args": {"default_args": wrong}, "partial": wrong}.get(where, {})
    with (
        pytest.raises(InvalidInputError) as raised,
        DAG("x", schedule=None, default_args=wrong if where == "the DAG's" else {}),
        TaskGroup("g", default_args=wrong if where == "the group's" else {}),
    ):
        ConferenceSensor.partial(task_id="x", **own)
    assert said in str(raised.value)


@pytest.mark.parametrize("where", ["its", "the DAG's", "the group's"])
def test_a_mapped_sensor_takes_all_its_parameters_from_default_args(where: str) -> None:
    given = {"status": "ended", "poke_interval": 5.0, "on_error": {"confClosed": "fail"}, "deferrable": True}
    given |= {"timeout": 7.0, "mode": "reschedule"}
    with (
        DAG("x", schedule=None, default_args=given if where == "the DAG's" else {}),
        TaskGroup("g", default_args=given if where == "the group's" else {}),
    ):
        own = {"default_args": given} if where == "its" else {}
        mapped = ConferenceSensor.partial(task_id="x", **own).expand(conference_id=["a"])
    made = mapped.unmap({"conference_id": "a"})
    assert {name: getattr(made, name) for name in given} == given


def test_a_sensor_asks_once_a_minute_since_each_call_counts() -> None:
    assert ConferenceSensor(task_id="x", conference_id="a").poke_interval == 60


# The triggerer


def deferred(sensor: ConferenceSensor) -> Any:
    with pytest.raises(TaskDeferred) as raised:
        sensor.execute({})
    return raised.value


@pytest.mark.parametrize("lenient", ["soft_fail", "never_fail", None])
def test_a_wait_that_times_out_skips_the_task_with_soft_fail_or_never_fail(
    sandbox: Sandbox, conn: Any, lenient: str | None
) -> None:
    options: dict[str, Any] = {lenient: True} if lenient else {}
    sensor = ConferenceSensor(task_id="x", conference_id="sandbox-notStarted", deferrable=True, **options)
    deferred(sensor)
    with pytest.raises(AirflowException) as raised:
        sensor.resume_execution("__fail__", {"error": "Trigger timeout"}, {})
    assert isinstance(raised.value, AirflowSkipException) is bool(lenient)


@pytest.mark.parametrize("lenient", ["silent_fail", "never_fail", None])
def test_what_is_wrong_with_airflow_at_the_first_poke_is_taken_as_by_its_own_sensors(
    sandbox: Sandbox, conn: Any, lenient: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_connection(*_: Any, **__: Any) -> Any:
        raise RuntimeError("503 from the API server")

    monkeypatch.setattr(DingTalkConferenceHook, "get_connection", get_connection)
    options: dict[str, Any] = {lenient: True} if lenient else {}
    sensor = ConferenceSensor(task_id="x", conference_id="1", deferrable=True, **options)
    expected = {"silent_fail": TaskDeferred, "never_fail": AirflowSkipException, None: RuntimeError}[lenient]
    with pytest.raises(expected):
        sensor.execute({})


def test_a_deferrable_sensor_waits_in_the_triggerer(sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference(status="not_started")
    sensor = ConferenceSensor(
        task_id="x", conference_id=meeting, deferrable=True, poke_interval=INTERVAL, timeout=60
    )
    wish = deferred(sensor)
    assert wish.trigger.seen == "not_started"
    assert wish.timeout.total_seconds() == 60
    timer = threading.Timer(0.5, sandbox.start, [meeting])
    timer.start()
    event = asyncio.run(asyncio.wait_for(event_of(wish.trigger), 60))
    ti: Any = Instance()
    told = getattr(sensor, wish.method_name)({"ti": ti}, event, **wish.kwargs)
    assert told["conference_id"] == meeting
    page = f"{INTERNATIONAL}/querying-video-conference-information"
    kept = {"documentation": page, "join": told["join_url"]}
    assert (getattr(sensor, LINKS_KEY) if AIRFLOW_V_3_0_PLUS else ti.pushed[LINKS_KEY]) == kept


def test_a_deferrable_sensor_whose_meeting_is_so_far_never_touches_the_triggerer(
    sandbox: Sandbox, conn: Any
) -> None:
    meeting = sandbox.create_conference()
    sensor = ConferenceSensor(task_id="x", conference_id=meeting, deferrable=True)
    assert sensor.execute({})["conference_id"] == meeting
    assert len(sandbox.calls_of("info", "query")) == 1


def test_what_the_trigger_was_refused_becomes_the_tasks_state(sandbox: Sandbox) -> None:
    event = {"error": ConferenceClosedError("said", code="confClosed", request_id="R-1").as_dict()}
    with pytest.raises(AirflowSkipException, match="request id R-1"):
        ConferenceSensor(task_id="x", conference_id="a").resume({}, event)
    with pytest.raises(AirflowFailException):
        ConferenceSensor(task_id="x", conference_id="a", on_error={"confClosed": "fail"}).resume({}, event)
    fine = ConferenceSensor(task_id="x", conference_id="a", on_error={"confClosed": "succeed"})
    assert fine.resume({}, event) is None


def test_a_deferred_sensor_holds_little_and_no_secret(sandbox: Sandbox, conn: Any) -> None:
    found = {"conference_id": sandbox.create_conference(status="not_started"), "title": "x" * 10_000}
    sensor = ConferenceSensor(
        task_id="x", conference_id=found, deferrable=True, on_error={"roomNotFound": "retry"}
    )
    wish = deferred(sensor)
    arguments = wish.trigger.serialize()[1]
    assert arguments["named"] == {"conference_id": found["conference_id"]}
    assert arguments["on_error"] == {"roomNotFound": "retry"}
    kept = json.dumps([arguments, wish.kwargs])
    assert len(kept) < 500
    secrets = {
        sandbox.client_secret,
        *filter(None, (one.header("x-acs-dingtalk-access-token") for one in sandbox.calls)),
    }
    assert not [secret for secret in secrets if secret in kept]

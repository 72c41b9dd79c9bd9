"""The operators: what becomes of a task for every way in which its call can end."""

from __future__ import annotations

import inspect
import json
import os
import signal
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS
from faults.scenarios import killer_of
from runs import LEVELS, Instance, Ran, all_output, connected_sandbox, default_args_of, run_dag

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    AddressBannedError,
    CredentialsError,
    DingTalkError,
    InvalidInputError,
    Outcome,
    ServerError,
    ThrottledError,
)
from airflow_provider_dingconf.links import LINKS_KEY
from airflow_provider_dingconf.operators import (
    CloseConferenceOperator,
    ConferenceMembersOperator,
    CreateConferenceOperator,
    DingTalkOperator,
    LockConferenceOperator,
    UnlockConferenceOperator,
)
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from airflow_provider_dingconf.sensors import ConferenceSensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("conn")
NO_POLICY = (
    {"retry_policy": None} if "retry_policy" in inspect.signature(BaseOperator.__init__).parameters else {}
)

# The first code of each class of error stands in the DAG for the others. All codes are used further below.
ROWS = [*{row.error: row for row in reversed(ERRORS.values())}.values()]


# Tasks that Airflow runs

DAG_FILE = '''
"""A task for every error that a lock can meet."""

import json
import os
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator

with DAG(
    "every_error",
    schedule=None,
    params={"conference_id": "sandbox-open"},
    default_args={"retries": 1, "retry_delay": timedelta(0), **json.loads(os.environ["TASK_ARGUMENTS"])},
) as dag:
    for code, arguments in json.loads(os.environ["TASKS"]).items():
        LockConferenceOperator(task_id=code, **arguments)
    UnlockConferenceOperator(task_id="unlocks", conference_id="{{ params.conference_id }}")
    LockConferenceOperator.partial(task_id="mapped").expand(conference_id=["sandbox-open", "sandbox-ended"])
'''

EXTRA_TASKS: dict[str, dict[str, Any]] = {
    "locks": {"conference_id": "{{ params.conference_id }}"},
    "overridden": {"conference_id": "sandbox-ended", "on_error": {"confClosed": "fail"}},
    "succeeds": {"conference_id": "sandbox-commandError", "on_error": {"commandError": "SUCCEED"}},
    "in_china": {"conference_id": "1", "dingtalk_conn_id": "in_china", "max_attempts": 1},
    "no_secret": {"conference_id": "1", "dingtalk_conn_id": "no_secret"},
    "no_connection": {"conference_id": "1", "dingtalk_conn_id": "no_connection"},
    "empty": {"conference_id": ""},
    "none": {"conference_id": None},
    "number": {"conference_id": 17},
    "two-segments": {"conference_id": "a/b"},
}
MISTAKES = {
    "empty": "it is empty",
    "none": "conference_id: it is missing, or a template or XCom rendered to None",
    "number": "of type int",
    "two-segments": "'a/b' has '/', which cannot stand in a conference id",
}


@pytest.fixture(scope="module")
def ran(airflow_db: None, tls_context: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Run the DAG once. An error that would reach the other tasks, too, has its own connection."""
    with (
        pytest.MonkeyPatch.context() as patch,
        connected_sandbox() as usual,
        Sandbox() as banning,
        Sandbox(slow=2) as slow,
        Sandbox(ssl_context=tls_context) as untrusted,
    ):

        def connection(name: str, sandbox: Sandbox, kind: Any = "internal", **overrides: Any) -> None:
            patch.setenv(f"AIRFLOW_CONN_{name.upper()}", sandbox.connection_json(kind, **overrides))

        connection("addressBanned", banning)
        connection("timeout", slow, extra={"timeout": 0.3})
        connection("badCertificate", untrusted)
        connection("no_secret", usual, password="")
        no_such_proxy = {"proxies": {"https": "http://127.0.0.1:9"}}
        connection("in_china", usual, host="api.dingtalk.com", extra=no_such_proxy)
        tasks = {}
        for number, row in enumerate(ROWS):
            arguments = {"conference_id": f"sandbox-{row.code}", "max_attempts": 1}
            if row.code in {"addressBanned", "badCertificate", "timeout"}:
                arguments["dingtalk_conn_id"] = row.code
            if row.code == "timeout":
                arguments["conference_id"] = "sandbox-slow"
            if row.error is CredentialsError:
                usual.fail(Fault(call="token", path=f"/corp{number}/", code=row.code))
                connection(f"corp{number}", usual, extra={"corp_id": f"corp{number}"})
                arguments["dingtalk_conn_id"] = f"corp{number}"
            tasks[row.code] = arguments
        patch.setenv("TASKS", json.dumps(tasks | EXTRA_TASKS))
        patch.setenv("TASK_ARGUMENTS", json.dumps(NO_POLICY))
        with all_output(tmp_path_factory.mktemp("log") / "output") as output:
            run = run_dag("every_error", DAG_FILE)
        log = output.read_text(errors="replace")
        yield Ran.of(run, usual, banning, slow, untrusted, log=log)


STATES = {Outcome.SKIP: ("skipped", 1), Outcome.FAIL: ("failed", 1), Outcome.RETRY: ("failed", 2)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_each_error_gives_the_task_its_state(ran: Ran, row: Any) -> None:
    assert (ran.state(row.code), ran.tries(row.code)) == STATES[row.outcome]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_a_task_that_is_not_retried_makes_no_further_call(ran: Ran, row: Any) -> None:
    calls = 2 if row.outcome is Outcome.RETRY else 1
    if row.error is AccessTokenError:
        calls = 2  # with a fresh token
    elif row.error is AddressBannedError:
        calls = 1  # the address is still banned when Airflow retries the task
    elif row.error is CredentialsError or row.code == "badCertificate":
        calls = 0
    conference_id = "sandbox-slow" if row.code == "timeout" else f"sandbox-{row.code}"
    assert len(ran.calls_of(conference_id, "lock")) == calls


@pytest.mark.parametrize(("task", "action"), [("locks", "lock"), ("unlocks", "unlock")])
def test_the_conference_id_is_a_template_and_the_xcom_has_plain_values(
    ran: Ran, task: str, action: str
) -> None:
    assert ran.state(task) == "success"
    assert {name: value for name, value in ran.rendered[task].items() if value is not None} == {
        "conference_id": "sandbox-open",
        "dingtalk_conn_id": "dingtalk_default",
    }
    assert ran.result(task) == {
        "conference_id": "sandbox-open",
        "action": action,
        "success": True,
        "attempts": 1,
        "request_id": None,  # DingTalk's response names none
    }


def test_on_error_makes_a_closed_meeting_a_failure_or_a_refusal_a_success(ran: Ran) -> None:
    assert (ran.state("overridden"), ran.tries("overridden")) == ("failed", 1)
    assert ran.state("succeeds") == "success"
    xcom = dict(ran.result("succeeds"))
    refused = ran.calls_of("sandbox-commandError", "lock")
    assert xcom.pop("request_id") in {call.request_id for call in refused}
    assert xcom.pop("error")["code"] == "commandError"
    result = {"conference_id": "sandbox-commandError", "action": "lock", "success": False, "attempts": 1}
    assert xcom == result


@pytest.mark.parametrize("task", MISTAKES)
def test_a_bad_conference_id_fails_at_once_and_says_what_is_wrong(ran: Ran, task: str) -> None:
    assert (ran.state(task), ran.tries(task)) == ("failed", 1)
    assert MISTAKES[task] in ran.log
    assert not [call for call in ran.calls if call.conference_id in {"", "a", "b", "None", "a/b"}]


def test_mapped_tasks_show_their_conference_id(ran: Ran) -> None:
    mapped = [ran.instances["mapped", index] for index in (0, 1)]
    assert [one.rendered_map_index for one in mapped] == ["sandbox-open", "sandbox-ended"]
    assert [str(one.state) for one in mapped] == ["success", "skipped"]


INTERNATIONAL = "https://help.dingtalk.io/open/development"
CHINA = "https://open.dingtalk.com/document/development"


@pytest.mark.parametrize(
    ("task", "map_index", "links"),
    [
        pytest.param("mapped", 0, [f"{INTERNATIONAL}/api-lockconference", "", ""], id="a call"),
        pytest.param(
            "mapped",
            1,
            [f"{INTERNATIONAL}/api-lockconference", f"{INTERNATIONAL}/server-api-error-codes-1", ""],
            id="an error",
        ),
        pytest.param(
            "in_china",
            -1,
            [f"{CHINA}/api-lockconference", f"{CHINA}/server-api-error-codes-1", ""],
            id="DingTalk in China",
        ),
        *(
            pytest.param(task, -1, ["", "", ""], id=f"no call: {task}")
            for task in ("two-segments", "no_secret", "no_connection")
        ),
    ],
)
def test_a_task_links_to_the_documentation_of_its_call_and_error(
    ran: Ran, task: str, map_index: int, links: list[str]
) -> None:
    assert ran.links(task, map_index) == links


def test_no_secret_is_in_the_database_or_the_log(ran: Ran) -> None:
    database = Path(os.environ["AIRFLOW_HOME"], "airflow.db").read_bytes()
    assert b"sandbox-confClosed" in database
    assert "lock sandbox-open: done" in ran.log
    assert ran.tokens
    # At DEBUG, Airflow 3.0 logs the secrets that it sends to its supervisor to be masked.
    log = "\n".join(line for line in ran.log.splitlines() if "MaskSecret(" not in line)
    for secret in (Sandbox.client_secret, *ran.tokens):
        assert secret not in log
        assert secret.encode() not in database


def test_airflow_2_takes_no_operator_for_one_inside_another(ran: Ran) -> None:
    assert "cannot be called outside" not in ran.log  # as it says of an execute that calls another one


# Tasks whose ``execute`` is called directly


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what returns the log since the last time, wherever the version of Airflow writes it."""

    def read() -> str:
        text = "".join(capfd.readouterr()) + caplog.text
        caplog.clear()
        return text

    return read


def execute(*conference_id: Any, operator: type = LockConferenceOperator, **arguments: Any) -> Any:
    named = {"conference_id": conference_id[0]} if conference_id else {}
    context = {"ti": arguments.pop("ti", Instance())}
    return operator(task_id="task", **named, **arguments).execute(context)


unlock = partial(execute, operator=UnlockConferenceOperator)
REFUSED = {
    Outcome.FAIL: AirflowFailException,
    Outcome.SKIP: AirflowSkipException,
    Outcome.RETRY: DingTalkError,
}
ON_A_LOCK = [row for row in ERRORS.values() if row.sent_by_dingtalk and row.error is not CredentialsError]


@pytest.mark.parametrize("operator", [LockConferenceOperator, UnlockConferenceOperator])
@pytest.mark.parametrize("row", ON_A_LOCK, ids=lambda row: row.code)
def test_each_error_is_the_exception_of_its_outcome(sandbox: Sandbox, row: Any, operator: type) -> None:
    with pytest.raises(REFUSED[row.outcome]) as caught:
        execute(f"sandbox-{row.code}", operator=operator, max_attempts=1)
    assert row.meaning in str(caught.value)
    named = "VideoConference.Conference.Write"  # the permission that the response itself names
    assert row.remedy in str(caught.value) or (
        row.code.endswith("PermissionDenied") and named in str(caught.value)
    )
    assert str(sandbox.calls[-1].request_id) in str(caught.value), "DingTalk's support asks for it"


@pytest.mark.parametrize("outcome", Outcome)
def test_on_error_decides_what_becomes_of_the_task(outcome: Outcome) -> None:
    arguments = {"on_error": {"commandError": outcome.name}}
    if outcome is Outcome.SUCCEED:
        assert execute("sandbox-commandError", **arguments)["success"] is False
    else:
        with pytest.raises(REFUSED[outcome]):
            execute("sandbox-commandError", **arguments)


def test_the_limits_of_a_call_are_not_airflows_retries(sandbox: Sandbox) -> None:
    retried = {"retries": 9, "retry_delay": timedelta(days=1)}
    assert execute("sandbox-answerLost", **retried)["attempts"] == 2
    sandbox.clear()
    with pytest.raises(ServerError):
        execute("sandbox-systemError", max_attempts=1, **retried)
    with pytest.raises(ThrottledError) as caught:
        execute("sandbox-Forbidden.AccessDenied.QpmLimitForAppkeyAndApi", max_seconds=5)
    assert caught.value.retry_after == 60
    assert len(sandbox.calls_of("lock")) == 2


@pytest.mark.parametrize(
    ("operator", "call", "arguments"),
    [
        (LockConferenceOperator, "lock", {"conference_id": "sandbox-open"}),
        (
            DingTalkOperator,
            "other",
            {"method": "POST", "path": "/v1.0/conference/videoConferences/m/members/kick"},
        ),
        (CloseConferenceOperator, "close", {"conference_id": "sandbox-open", "creator_id": "chris"}),
        (ConferenceMembersOperator, "members", {"conference_id": "sandbox-open"}),
    ],
)
def test_a_killed_task_ends_its_call_and_one_that_makes_none_goes_on(
    sandbox: Sandbox, operator: Any, call: str, arguments: dict[str, Any]
) -> None:
    sandbox.fail(Fault(call=call, delay=9.0))
    task = operator(task_id="task", **arguments)
    task.on_kill()

    def kill() -> None:
        while not sandbox.calls_of(call):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, killer_of(task))
    threading.Thread(target=kill, daemon=True).start()
    began = time.monotonic()
    try:
        with pytest.raises(BaseException) as raised:  # noqa: PT011
            task.execute({"ti": Instance()})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < 8, "the call was not ended"
    said = f"{operator.action} was interrupted" if AIRFLOW_V_3_0_PLUS else "Task received SIGTERM signal"
    assert str(raised.value) == said
    assert len(sandbox.calls_of(call)) == 1
    assert not sandbox.conference("sandbox-open").locked


@pytest.mark.parametrize("named", [{"conference_id": "sandbox-open"}, {"room_code": "1234567890"}])
def test_a_dry_run_names_the_meeting_and_locks_nothing(sandbox: Sandbox, named: dict[str, str]) -> None:
    sandbox.create_conference(conference_id="room", room_code="1234567890")
    result = execute(dry_run=True, **named)
    assert (result["conference_id"], result["success"]) == (named.get("conference_id", "room"), False)
    assert unlock(result)["success"] is True
    assert sandbox.calls_of("lock", "unlock") == []


def test_a_dry_run_whose_list_is_refused_ends_as_the_error_says(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="list", code="noPermission"))
    with pytest.raises(AirflowFailException, match="noPermission"):
        execute(running=True, dry_run=True)


@pytest.mark.parametrize(
    "xcom", [None, [], [None], {"conference_id": None, "action": "lock", "success": False}]
)
def test_an_unlock_of_a_lock_that_handed_nothing_on_succeeds_with_one_line(
    sandbox: Sandbox, xcom: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    unlock(xcom)
    assert "".join(capfd.readouterr()).count("Nothing to unlock") == 1
    assert sandbox.calls == []


def test_a_lock_hands_its_meeting_on_if_the_response_was_lost_and_not_if_it_was_refused(
    sandbox: Sandbox,
) -> None:
    sandbox.create_conference(conference_id="lost")
    sandbox.fail(Fault(call="lock", path="/lost/", drop=True, after=True))
    instance = Instance()
    with pytest.raises(DingTalkError):
        execute("lost", max_attempts=1, ti=instance)
    assert unlock(instance.xcoms["return_value"])["success"] is True
    assert not sandbox.conference("lost").locked
    unlock(execute("sandbox-noPermission", on_error={"noPermission": "succeed"}))
    assert [call.conference_id for call in sandbox.calls_of("unlock")] == ["lost"]


def test_a_lock_whose_search_was_lost_hands_no_meeting_on(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="roomCode", drop=True, after=True))
    instance = Instance()
    with pytest.raises(DingTalkError):
        execute(room_code="123", max_attempts=1, ti=instance)
    assert "return_value" not in instance.xcoms
    result = execute(room_code="123", max_attempts=1, on_error={"connectionLost": "succeed"})
    assert unlock(result)["success"] is True
    assert sandbox.calls_of("unlock") == []


def test_a_failed_unlock_says_how_to_unlock_by_hand_also_if_it_counts_as_a_success(
    logged: Callable[[], str],
) -> None:
    said = "Still locked: sandbox-noPermission. To unlock by hand"
    with pytest.raises(AirflowSkipException):
        unlock("sandbox-ended")
    assert "Still locked" not in logged()
    with pytest.raises(AirflowFailException):
        unlock("sandbox-noPermission")
    assert said in logged()
    for meetings in "sandbox-noPermission", ["sandbox-noPermission", "sandbox-open"]:
        unlock(meetings, on_error={"noPermission": "succeed"})
        assert said in logged()


def test_the_log_of_a_normal_lock_has_one_line_and_of_a_failed_one_says_the_remedy_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    execute("sandbox-open")
    capfd.readouterr()  # the first call of a process also logs the access token
    execute("sandbox-open")
    lines = "".join(capfd.readouterr()).splitlines()
    airflow = ("cannot be called outside", "etrieving connection", "Connection Retrieved", "cryptography key")
    assert len([line for line in lines if not any(words in line for words in airflow)]) == 1
    with pytest.raises(AirflowFailException):
        execute("sandbox-commandError")
    assert "".join(capfd.readouterr()).count(ERRORS["commandError"].remedy) == 1


# The DAG file


WRONG: list[dict[str, Any]] = [
    {"on_error": {"confClose": "fail"}},
    {"on_error": {"confClosed": "fial"}},
    {"max_attempts": 0},
    {"max_attempts": 1.5},
    {"max_attempts": True},
    {"max_seconds": 0},
    {"max_seconds": "9"},
    {"unlock_on_failure": "False"},
    {"running": "False"},
    {"running": "{{ params.all }}"},
    {"dry_run": 1},
    {"max_meetings": 0},
    {"max_meetings": "9"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_an_invalid_parameter_is_an_error_of_the_dag_file(wrong: dict[str, Any]) -> None:
    for make in (partial(LockConferenceOperator, conference_id="1"), LockConferenceOperator.partial):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            make(task_id="lock", **wrong)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("wrong", [{"on_error": {"confClose": "fail"}}, {"max_attempts": 0}], ids=str)
def test_a_mistake_in_default_args_is_an_error_of_the_dag_file(
    wrong: dict[str, Any], mapped: bool, level: str
) -> None:
    make = LockConferenceOperator.partial if mapped else partial(LockConferenceOperator, conference_id="1")
    with pytest.raises(InvalidInputError), default_args_of(level, wrong) as default_args:
        make(task_id="lock", default_args=default_args)


@pytest.mark.parametrize("level", LEVELS)
def test_a_mapped_task_takes_its_parameters_from_default_args(level: str) -> None:
    given = {
        "dingtalk_conn_id": "theirs",
        "max_attempts": 2,
        "unlock_on_failure": True,
        "on_error": {"confClosed": "fail"},
        "max_meetings": 7,
        "map_index_template": "{{ 2 }}",
    }
    with default_args_of(level, given) as default_args:
        mapped = LockConferenceOperator.partial(
            task_id="lock", default_args=default_args, max_attempts=3, map_index_template="{{ 1 }}"
        ).expand(conference_id=["1"])
        other = LockConferenceOperator.partial(task_id="other", default_args=default_args)
        other.expand(conference_id=["1"])
    assert mapped.partial_kwargs["map_index_template"] == "{{ 1 }}"
    assert other.kwargs["map_index_template"] == "{{ 2 }}"
    task = mapped.unmap({"conference_id": "1"})
    assert (task.dingtalk_conn_id, task.max_attempts, task.max_meetings) == ("theirs", 3, 7)
    assert (task.unlock_on_failure, task.on_error) == (True, {"confClosed": Outcome.FAIL})


def test_an_operator_that_executes_again_links_to_no_meeting_of_before(sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference(room_code="1234567890")
    task, ti = LockConferenceOperator(task_id="lock", room_code="1234567890"), Instance()
    task.execute({"ti": ti})
    sandbox.end(meeting)
    with pytest.raises(AirflowFailException):
        task.execute({"ti": ti})
    kept = getattr(task, LINKS_KEY) if AIRFLOW_V_3_0_PLUS else ti.xcoms[LINKS_KEY]
    assert sorted(kept) == ["documentation", "error"]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("title", ["2026", "None", "[1]", "'Exam'", 'An "exam"', "Exam \\ 1"])
def test_a_mapped_task_is_shown_by_a_text_also_in_a_dag_of_native_templates(title: str, native: bool) -> None:
    with DAG("native", schedule=None, render_template_as_native_obj=native) as dag:
        mapped = CreateConferenceOperator.partial(task_id="create", creator_id="chris").expand(title=[title])
    template = dag.get_template_env().from_string(mapped.map_index_template)
    assert template.render(task=mapped.unmap({"title": title})) == title


@pytest.mark.parametrize("named", ["room_code", "schedule_conference_id"])
@pytest.mark.parametrize("task", [LockConferenceOperator, UnlockConferenceOperator, ConferenceSensor])
def test_a_list_of_codes_is_an_error_of_the_dag_file(task: Any, named: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{named}: it takes one, not a list"):
        task(task_id="x", **{named: ["1", "2"]})


@pytest.mark.parametrize("operator", [LockConferenceOperator, UnlockConferenceOperator])
def test_the_links_are_named_for_people(operator: Any) -> None:
    assert [link.name for link in operator.operator_extra_links] == [
        "DingTalk documentation",
        "DingTalk error codes",
        "Join the meeting",
    ]

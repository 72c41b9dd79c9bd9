"""The operators: what becomes of a task for every way in which its call can end."""

from __future__ import annotations

import inspect
import json
import os
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.providers.common.compat.sdk import DAG, BaseOperator, TaskGroup
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS
from runs import Instance, Ran, all_output, connected_sandbox, run_dag

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    AddressBannedError,
    CredentialsError,
    DingTalkError,
    InvalidInputError,
    Outcome,
    ThrottledError,
)
from airflow_provider_dingconf.links import CallDocumentationLink, ErrorDocumentationLink
from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from airflow_provider_dingconf.sensors import ConferenceSensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QPM = "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi"
NO_POLICY = (
    {"retry_policy": None} if "retry_policy" in inspect.signature(BaseOperator.__init__).parameters else {}
)

# The first code of each class of error stands in the DAG for the others: each is tried further below.
ROWS = [*{row.error: row for row in reversed(ERRORS.values())}.values()]


# Tasks that Airflow runs.

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
    LockConferenceOperator.partial(task_id="mapped").expand(conference_id=["sandbox-open", "sandbox-flaky"])
'''

EXTRA_TASKS: dict[str, dict[str, Any]] = {
    "locks": {"conference_id": "{{ params.conference_id }}"},
    "overridden": {
        "conference_id": "sandbox-ended",
        "on_error": {"confClosed": "fail"},
        "max_attempts": 1,
    },
    "succeeds": {
        "conference_id": "sandbox-commandError",
        "on_error": {"commandError": "SUCCEED"},
        "max_attempts": 1,
    },
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
    """Run the DAG once, each kind of trouble over a connection of its own where it would spread."""
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
        sandboxes = (usual, banning, slow, untrusted)
        yield Ran.of(
            run,
            [call for sandbox in sandboxes for call in sandbox.calls],
            output.read_text(errors="replace"),
        )


STATES = {Outcome.SKIP: ("skipped", 1), Outcome.FAIL: ("failed", 1), Outcome.RETRY: ("failed", 2)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_each_error_gives_the_task_its_state(ran: Ran, row: Any) -> None:
    assert (ran.state(row.code), ran.tries(row.code)) == STATES[row.outcome]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_a_task_that_is_not_retried_makes_no_further_call(ran: Ran, row: Any) -> None:
    conference_id = "slow" if row.code == "timeout" else row.code
    calls = {
        Outcome.RETRY: 2,
        Outcome.FAIL: 1,
        Outcome.SKIP: 1,
    }[row.outcome]
    if row.error is AccessTokenError:
        calls = 2  # a fresh token was tried
    elif row.error is AddressBannedError:
        calls = 1  # the retry comes while the address is banned
    elif row.error is CredentialsError or row.code == "badCertificate":
        calls = 0
    assert len(ran.calls_of(f"sandbox-{conference_id}", "lock")) == calls


def test_a_locked_meeting_is_an_xcom_of_plain_values(ran: Ran) -> None:
    assert ran.state("locks") == "success"
    assert ran.result("locks") == {
        "conference_id": "sandbox-open",
        "action": "lock",
        "success": True,
        "attempts": 1,
        "request_id": None,  # DingTalk's good answer names none
    }


def test_an_unlocked_meeting_is_an_xcom_of_plain_values(ran: Ran) -> None:
    xcom = ran.result("unlocks")
    assert (xcom["conference_id"], xcom["action"], xcom["success"]) == ("sandbox-open", "unlock", True)


def test_the_conference_id_is_a_template(ran: Ran) -> None:
    assert {name: value for name, value in ran.rendered["unlocks"].items() if value is not None} == {
        "conference_id": "sandbox-open",
        "dingtalk_conn_id": "dingtalk_default",
    }


def test_on_error_makes_a_closed_meeting_a_failure(ran: Ran) -> None:
    assert (ran.state("overridden"), ran.tries("overridden")) == ("failed", 1)


def test_on_error_makes_a_refusal_a_success(ran: Ran) -> None:
    assert ran.state("succeeds") == "success"
    xcom = dict(ran.result("succeeds"))
    refused = ran.calls_of("sandbox-commandError", "lock")
    assert xcom.pop("request_id") in {call.request_id for call in refused}
    assert xcom.pop("error")["code"] == "commandError"
    assert xcom == {
        "conference_id": "sandbox-commandError",
        "action": "lock",
        "success": False,
        "attempts": 1,
    }


@pytest.mark.parametrize("task", MISTAKES)
def test_a_bad_conference_id_fails_at_once_and_says_what_is_wrong(ran: Ran, task: str) -> None:
    assert (ran.state(task), ran.tries(task)) == ("failed", 1)
    assert MISTAKES[task] in ran.log
    assert not [call for call in ran.calls if call.conference_id in {"", "a", "b", "None", "a/b"}]


def test_mapped_tasks_show_their_conference_id(ran: Ran) -> None:
    shown = [ran.instances["mapped", index].rendered_map_index for index in (0, 1)]
    assert shown == ["sandbox-open", "sandbox-flaky"]
    assert ran.xcoms["mapped", 1, "return_value"]["attempts"] == 3, "systemError twice, then success"


def test_a_task_links_to_the_documentation_of_its_call_and_error(ran: Ran) -> None:
    call, error = CallDocumentationLink(), ErrorDocumentationLink()
    assert ran.link("locks", call).endswith("/api-lockconference")
    assert not ran.link("locks", error)
    assert ran.link("confClosed", error).endswith("/server-api-error-codes-1")


def test_no_secret_is_in_the_database_or_the_log(ran: Ran) -> None:
    database = Path(os.environ["AIRFLOW_HOME"], "airflow.db").read_bytes()
    assert b"sandbox-confClosed" in database
    assert "lock sandbox-open: done" in ran.log
    assert ran.tokens
    # Where Airflow 3.0 logs at DEBUG, it shows what its own supervisor is told to mask.
    log = "\n".join(line for line in ran.log.splitlines() if "MaskSecret(" not in line)
    for secret in (Sandbox.client_secret, *ran.tokens):
        assert secret not in log
        assert secret.encode() not in database


def test_airflow_2_takes_no_operator_for_one_inside_another(ran: Ran) -> None:
    assert "lock sandbox-open: done" in ran.log
    assert "cannot be called outside" not in ran.log  # as it says of an execute that calls another one


# Tasks whose ``execute`` is called directly.


def execute(conference_id: Any, operator: type = LockConferenceOperator, **arguments: Any) -> Any:
    task = operator(task_id="task", conference_id=conference_id, **arguments)
    return task.execute({"ti": Instance()})


REFUSED = {
    Outcome.FAIL: AirflowFailException,
    Outcome.SKIP: AirflowSkipException,
    Outcome.RETRY: DingTalkError,
}
ON_A_LOCK = [row for row in ERRORS.values() if row.sent_by_dingtalk and row.error is not CredentialsError]


@pytest.mark.parametrize("operator", [LockConferenceOperator, UnlockConferenceOperator])
@pytest.mark.parametrize("row", ON_A_LOCK, ids=lambda row: row.code)
def test_each_error_is_the_exception_of_its_outcome(
    conn: Callable[..., None], sandbox: Sandbox, row: Any, operator: type
) -> None:
    with pytest.raises(REFUSED[row.outcome]) as caught:
        execute(f"sandbox-{row.code}", operator, max_attempts=1)
    assert row.meaning in str(caught.value)
    named = "VideoConference.Conference.Write"  # the permission that the response itself names
    assert row.remedy in str(caught.value) or (
        row.code.endswith("PermissionDenied") and named in str(caught.value)
    )
    assert str(sandbox.calls[-1].request_id) in str(caught.value), "DingTalk's support asks for it"


@pytest.mark.parametrize("outcome", [*Outcome, *(outcome.name for outcome in Outcome), "Skip"])
def test_on_error_takes_an_outcome_by_its_name(conn: Callable[..., None], outcome: Any) -> None:
    arguments = {"on_error": {"commandError": outcome}}
    wanted = Outcome(outcome.lower())
    if wanted is Outcome.SUCCEED:
        assert execute("sandbox-commandError", **arguments)["success"] is False
    else:
        with pytest.raises(REFUSED[wanted]):
            execute("sandbox-commandError", **arguments)


MISSPELT = [
    (
        {"confClose": "fail"},
        "'confClose' is neither a known error code nor an error class; did you mean 'confClosed'?",
    ),
    ({"conf_closed": "fail"}, "did you mean 'confClosed'?"),
    ({"CONFCLOSED": "fail"}, "did you mean 'confClosed'?"),
    ({"xyzzy": "fail"}, "'xyzzy' is neither a known error code nor an error class"),
    ({"confClosed": "fial"}, "'fial', for confClosed, is not an outcome; did you mean 'fail'?"),
    ({"confClosed": "success"}, "did you mean 'succeed'?"),
    ({"confClosed": None}, "None, for confClosed, is not an outcome"),
    ({"confClosed": True}, "True, for confClosed, is not an outcome"),
    (["confClosed"], "expected a dict of outcomes by code or class, got list"),
]


@pytest.mark.parametrize(("on_error", "said"), MISSPELT)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_misspelt_code_or_outcome_is_an_error_of_the_dag_file(
    on_error: Any, said: str, mapped: bool
) -> None:
    make = LockConferenceOperator.partial if mapped else partial(LockConferenceOperator, conference_id="1")
    with pytest.raises(InvalidInputError) as caught:
        make(task_id="lock", on_error=on_error)
    assert said in str(caught.value)


@pytest.mark.parametrize("whose", ["dag", "group", "task"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("wrong", [{"on_error": {"confClose": "fail"}}, {"max_attempts": 0}], ids=str)
def test_a_mistake_in_default_args_is_an_error_of_the_dag_file(
    wrong: dict[str, Any], mapped: bool, whose: str
) -> None:
    make = LockConferenceOperator.partial if mapped else partial(LockConferenceOperator, conference_id="1")
    defaults = {level: wrong if level == whose else {} for level in ("dag", "group", "task")}
    with (
        pytest.raises(InvalidInputError),
        DAG("mistaken", schedule=None, default_args=defaults["dag"]),
        TaskGroup("group", default_args=defaults["group"]),
    ):
        make(task_id="lock", default_args=defaults["task"])


@pytest.mark.parametrize("whose", ["dag", "group", "task"])
def test_a_mapped_task_takes_its_parameters_from_default_args(whose: str) -> None:
    own = {
        "dingtalk_conn_id": "theirs",
        "max_attempts": 2,
        "unlock_on_failure": True,
        "on_error": {"confClosed": "fail"},
        "max_meetings": 7,
    }
    defaults = {level: own if level == whose else {} for level in ("dag", "group", "task")}
    with (
        DAG("mapped", schedule=None, default_args=defaults["dag"]),
        TaskGroup("group", default_args=defaults["group"]),
    ):
        mapped = LockConferenceOperator.partial(
            task_id="lock", default_args=defaults["task"], max_attempts=3
        ).expand(conference_id=["1"])
    task = mapped.unmap({"conference_id": "1"})
    assert (task.dingtalk_conn_id, task.max_attempts, task.max_meetings) == ("theirs", 3, 7)
    assert (task.unlock_on_failure, task.on_error) == (True, {"confClosed": Outcome.FAIL})


@pytest.mark.parametrize(
    "limit",
    [
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
    ],
)
def test_a_parameter_of_the_wrong_kind_is_an_error_of_the_dag_file(limit: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(limit))):
        LockConferenceOperator(task_id="lock", conference_id="1", **limit)
    with pytest.raises(InvalidInputError, match=next(iter(limit))):
        LockConferenceOperator.partial(task_id="lock", **limit)


def test_a_mapped_task_may_name_its_own_map_index_template() -> None:
    with DAG("mapped", schedule=None):
        mapped = LockConferenceOperator.partial(task_id="lock", map_index_template="{{ 1 }}").expand(
            conference_id=["1"]
        )
    assert mapped.partial_kwargs["map_index_template"] == "{{ 1 }}"


def test_a_wait_that_does_not_fit_into_the_time_of_the_call_is_left_to_airflow(
    conn: Callable[..., None], sandbox: Sandbox
) -> None:
    with pytest.raises(ThrottledError) as caught:
        execute(f"sandbox-{QPM}", max_seconds=5)
    assert caught.value.retry_after == 60
    assert len(sandbox.calls_of("lock")) == 1


def test_a_killed_task_ends_its_call_and_one_that_makes_none_goes_on(
    conn: Callable[..., None], sandbox: Sandbox
) -> None:
    import threading

    sandbox.fail(Fault(call="lock", delay=1.0))
    task = LockConferenceOperator(task_id="lock", conference_id="sandbox-open")
    task.on_kill()
    said: list[str] = []

    def kill() -> None:
        while not sandbox.calls_of("lock"):
            time.sleep(0.01)
        try:
            task.on_kill()
            said.append("Airflow 2 raises an exception of its own")
        except SystemExit as error:
            said.append(str(error))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(SystemExit):
        task.execute({"ti": Instance()})
    killer.join(60)
    expected = "lock was interrupted" if AIRFLOW_V_3_0_PLUS else "Airflow 2 raises an exception of its own"
    assert said == [expected]
    assert not sandbox.conference("sandbox-open").locked


def test_retries_delayed_for_days_are_not_the_calls_attempts(conn: Callable[..., None]) -> None:
    result = execute("sandbox-answerLost", retries=9, retry_delay=timedelta(days=1))
    assert result["attempts"] == 2


@pytest.mark.parametrize("named", [{"conference_id": "sandbox-open"}, {"room_code": "1234567890"}])
def test_a_dry_run_names_the_meeting_and_locks_nothing(
    conn: Callable[..., None], sandbox: Sandbox, named: dict[str, str]
) -> None:
    sandbox.create_conference(conference_id="room", room_code="1234567890")
    task = LockConferenceOperator(task_id="lock", dry_run=True, **named)
    result = task.execute({"ti": Instance()})
    assert (result["conference_id"], result["success"]) == (named.get("conference_id", "room"), False)
    assert sandbox.calls_of("lock") == []
    assert execute(result, UnlockConferenceOperator)["success"] is True
    assert sandbox.calls_of("unlock") == []


def test_a_dry_run_whose_list_is_refused_ends_as_the_error_says(
    conn: Callable[..., None], sandbox: Sandbox
) -> None:
    sandbox.fail(Fault(call="list", code="noPermission"))
    with pytest.raises(AirflowFailException, match="noPermission"):
        LockConferenceOperator(task_id="lock", running=True, dry_run=True).execute({"ti": Instance()})


@pytest.mark.parametrize(
    ("xcom", "unlocks"),
    [(None, 0), ([], 0), ([None], 0), ({"conference_id": None, "action": "lock", "success": False}, 0)],
)
def test_an_unlock_of_a_lock_that_handed_nothing_on_succeeds_with_one_line(
    conn: Callable[..., None], sandbox: Sandbox, xcom: Any, unlocks: int, capfd: pytest.CaptureFixture[str]
) -> None:
    execute(xcom, UnlockConferenceOperator)
    assert "".join(capfd.readouterr()).count("Nothing to unlock") == 1
    assert len(sandbox.calls) == unlocks


def test_a_lock_whose_response_was_lost_hands_its_meeting_on_and_a_refused_one_does_not(
    conn: Callable[..., None], sandbox: Sandbox
) -> None:
    sandbox.create_conference(conference_id="lost")
    sandbox.fail(Fault(call="lock", path="/lost/", drop=True, after=True))
    instance = Instance()
    with pytest.raises(DingTalkError):
        LockConferenceOperator(task_id="lock", conference_id="lost", max_attempts=1).execute({"ti": instance})
    assert execute(instance.xcoms["return_value"], UnlockConferenceOperator)["success"] is True
    assert not sandbox.conference("lost").locked
    refused = execute("sandbox-noPermission", on_error={"noPermission": "succeed"})
    execute(refused, UnlockConferenceOperator)
    assert [call.conference_id for call in sandbox.calls_of("unlock")] == ["lost"]


def test_a_lock_whose_search_was_lost_hands_no_meeting_on(
    conn: Callable[..., None], sandbox: Sandbox
) -> None:
    sandbox.fail(Fault(call="roomCode", drop=True, after=True))
    lock: dict[str, Any] = {"task_id": "lock", "room_code": "123", "max_attempts": 1}
    instance = Instance()
    with pytest.raises(DingTalkError):
        LockConferenceOperator(**lock).execute({"ti": instance})
    assert "return_value" not in instance.xcoms
    result = LockConferenceOperator(**lock, on_error={"connectionLost": "succeed"}).execute(
        {"ti": Instance()}
    )
    assert execute(result, UnlockConferenceOperator)["success"] is True
    assert sandbox.calls_of("unlock") == []


@pytest.mark.parametrize("named", ["room_code", "schedule_conference_id"])
def test_a_list_of_codes_is_an_error_when_the_dag_is_parsed(named: str) -> None:
    for task in (LockConferenceOperator, UnlockConferenceOperator, ConferenceSensor):
        with pytest.raises(InvalidInputError, match=f"^{named}: it takes one, not a list"):
            task(task_id="x", **{named: ["1", "2"]})


def test_a_failed_unlock_says_how_to_unlock_by_hand_also_where_it_counts_as_a_success(
    conn: Callable[..., None], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AirflowSkipException):
        execute("sandbox-ended", UnlockConferenceOperator)
    assert "Still locked" not in "".join(capfd.readouterr()) + caplog.text
    with pytest.raises(AirflowFailException):
        execute("sandbox-noPermission", UnlockConferenceOperator)
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Still locked: sandbox-noPermission. To unlock by hand" in said
    for meetings in "sandbox-noPermission", ["sandbox-noPermission", "sandbox-open"]:
        caplog.clear()
        execute(meetings, UnlockConferenceOperator, on_error={"noPermission": "succeed"})
        said = "".join(capfd.readouterr()) + caplog.text
        assert "Still locked: sandbox-noPermission. To unlock by hand" in said


def test_the_log_of_a_normal_lock_has_one_line_and_of_a_failed_one_says_the_remedy_once(
    conn: Callable[..., None], sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
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

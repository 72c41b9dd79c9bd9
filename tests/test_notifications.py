"""A notifier unlocks what no unlock task unlocks: for callbacks, and awaited for deadline alerts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import DAG
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS
from runs import connected_sandbox, run_dag

from airflow_provider_dingconf.dingtalk.errors import ConferencesError, InvalidInputError
from airflow_provider_dingconf.notifications import UnlockConferenceNotifier
from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

DAG_FILE = """
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, task

from airflow_provider_dingconf.notifications import UnlockConferenceNotifier
from airflow_provider_dingconf.operators import LockConferenceOperator


@task
def fail():
    raise AirflowFailException("the work failed")


with DAG("notifies", schedule=None, params={"meeting": "given"}) as dag:
    LockConferenceOperator(task_id="lock_given", conference_id="{{ params.meeting }}") >> fail.override(
        on_failure_callback=UnlockConferenceNotifier(conference_id="{{ params.meeting }}")
    )()
    LockConferenceOperator(task_id="lock_many", conference_id=["many-1", "many-2"]) >> fail.override(
        on_failure_callback=UnlockConferenceNotifier(conference_id="{{ ti.xcom_pull(task_ids='lock_many') }}")
    )()
    LockConferenceOperator(task_id="lock_room", room_code="1234567890") >> fail.override(
        on_failure_callback=UnlockConferenceNotifier(room_code="123 456-7890")
    )()
"""


def test_the_failure_of_a_task_unlocks_the_meetings(airflow_db: None) -> None:
    with connected_sandbox() as sandbox:
        for meeting in ("given", "many-1", "many-2"):
            sandbox.create_conference(conference_id=meeting)
        sandbox.create_conference(conference_id="room", room_code="1234567890")
        assert str(run_dag("notifies", DAG_FILE).state) == "failed"
        assert len(sandbox.calls_of("lock")) == len(sandbox.calls_of("unlock")) == 4
        for meeting in ("given", "many-1", "many-2", "room"):
            assert not sandbox.conference(meeting).locked


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.skipif(not AIRFLOW_V_3_1_PLUS, reason="3.1"))]
)
def notify(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return what calls a notifier as Airflow does, or awaits it."""

    def call(**arguments: Any) -> None:
        context: Any = {
            "dag": DAG("notifies", schedule=None),
            "params": {"refusal": "noPermission"},
            "xcom": arguments.pop("xcom", None),
        }
        if not request.param:
            notifier = UnlockConferenceNotifier(**arguments)
            notifier._update_context(context)
            notifier.render_template_fields(context)
            notifier.notify(context)
            return
        del context["dag"]  # the triggerer has none

        async def awaited() -> None:
            await UnlockConferenceNotifier(**arguments, context=context)

        asyncio.run(awaited())

    return call


LOCK = {"conference_id": "m", "action": "lock", "success": True, "attempts": 1, "request_id": None}
REFUSED = {**LOCK, "success": False, "error": {"uncertain": False}}
LOST = {**LOCK, "success": False, "error": {"uncertain": True}}


@pytest.mark.parametrize(
    ("xcom", "unlocks"),
    [("m", 1), (LOCK, 1), ([LOCK, REFUSED], 1), (LOST, 1), (REFUSED, 0), (None, 0), ([], 0), ("None", 0)],
    ids=["id", "lock", "list", "lost", "refused", "none", "no meeting", "text of none"],
)
def test_the_xcom_of_a_lock_is_taken_as_text_and_as_it_is(
    notify: Any, sandbox: Sandbox, conn: Any, xcom: Any, unlocks: int
) -> None:
    sandbox.create_conference(conference_id="m")
    as_json = ["{{ xcom | tojson }}"] if isinstance(xcom, (dict, list)) else []
    for given in ["{{ xcom }}", *as_json, *([] if xcom is None else [xcom])]:
        sandbox.conference("m").locked = True
        sandbox.clear()
        notify(conference_id=given, xcom=xcom)
        assert len(sandbox.calls_of("unlock")) == unlocks
        assert sandbox.conference("m").locked is not bool(unlocks)


def test_one_notifier_unlocks_the_meeting_of_each_run_that_it_is_called_for(
    sandbox: Sandbox, conn: Any
) -> None:
    notifier = UnlockConferenceNotifier(conference_id="{{ params.meeting }}")
    for meeting in ("first", "second"):
        sandbox.conference(sandbox.create_conference(conference_id=meeting)).locked = True
        notifier({"dag": DAG("notifies", schedule=None), "params": {"meeting": meeting}})
        assert not sandbox.conference(meeting).locked


def test_an_ended_meeting_and_a_room_code_without_a_running_meeting_are_no_errors(
    notify: Any, sandbox: Sandbox, conn: Any
) -> None:
    notify(conference_id="sandbox-ended")
    notify(room_code="999")
    assert len(sandbox.calls_of("unlock")) == 1


def test_a_refused_unlock_is_an_error_and_says_how_to_unlock_by_hand(
    notify: Any, conn: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConferencesError, match="noPermission"):
        notify(conference_id="sandbox-{{ params.refusal }}")
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Still locked: sandbox-noPermission. To unlock by hand" in said


@pytest.mark.parametrize(
    "arguments",
    [{}, {"conference_id": "1", "room_code": "2"}, {"conference_id": map(str, [1])}],
    ids=["no meeting", "two", "an iterator"],
)
def test_a_notifier_of_no_meeting_or_of_two_or_of_an_iterator_is_an_error_of_the_dag_file(
    arguments: Any,
) -> None:
    with pytest.raises(InvalidInputError):
        UnlockConferenceNotifier(**arguments)

"""The links of a task: to the documentation of its call, and of the error it met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AIRFLOW_V_3_0_PLUS
from runs import Instance, connected_sandbox, names_of

from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError
from airflow_provider_dingconf.links import (
    LINKS_KEY,
    CallDocumentationLink,
    ErrorDocumentationLink,
    keep_links,
)
from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL, ERROR = CallDocumentationLink(), ErrorDocumentationLink()
INTERNATIONAL = "https://help.dingtalk.io/open/development"
CHINA = "https://open.dingtalk.com/document/development"

DAG_FILE = """
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_dingconf.operators import LockConferenceOperator

with DAG("links", schedule=None, default_args={"max_attempts": 1}) as dag:
    LockConferenceOperator(task_id="in_china", conference_id="1", dingtalk_conn_id="in_china")
    LockConferenceOperator(task_id="two_segments", conference_id="a/b")
    LockConferenceOperator(task_id="no_secret", conference_id="1", dingtalk_conn_id="no_secret")
    LockConferenceOperator(task_id="no_connection", conference_id="1", dingtalk_conn_id="no_connection")
    LockConferenceOperator.partial(task_id="mapped").expand(conference_id=["sandbox-open", "sandbox-confClosed"])
"""


class Shown:
    """The links that Airflow shows on the tasks of a run."""

    def __init__(self, dag: Any, run: Any) -> None:
        self._dag, self._run = dag, run

    def __call__(self, task_id: str, map_index: int = -1) -> list[str | None]:
        """Return the addresses of a task's two links, where there are any."""
        (ti,) = (
            ti for ti in self._run.get_task_instances() if (ti.task_id, ti.map_index) == (task_id, map_index)
        )
        if not AIRFLOW_V_3_0_PLUS:  # the web server asks the operator of the serialized DAG
            from airflow.serialization.serialized_objects import SerializedDAG

            task: Any = SerializedDAG.from_dict(SerializedDAG.to_dict(self._dag)).get_task(task_id)
            return [task.get_extra_links(ti, link.name) or None for link in (CALL, ERROR)]
        return [self._pushed(ti, link.xcom_key) for link in (CALL, ERROR)]  # the worker has pushed them

    def _pushed(self, ti: Any, key: str) -> str | None:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            found = session.query(XComModel).filter_by(
                run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index, key=key
            )
            return next((str(XComModel.deserialize_value(one)) or None for one in found), None)


@pytest.fixture(scope="module")
def shown(airflow_db: None) -> Iterator[Shown]:
    """Let Airflow run the tasks, and return what shows their links."""
    with pytest.MonkeyPatch.context() as patch, connected_sandbox() as sandbox:
        patch.setenv("AIRFLOW_CONN_NO_SECRET", sandbox.connection_json(password=""))
        # Nothing gets there: there is no such proxy.
        proxies = {"https": "http://127.0.0.1:9"}
        in_china = sandbox.connection_json(host="api.dingtalk.com", extra={"proxies": proxies})
        patch.setenv("AIRFLOW_CONN_IN_CHINA", in_china)
        dag = names_of(DAG_FILE, "links")["dag"]
        yield Shown(dag, dag.test())


def test_a_task_links_to_the_documentation_of_its_call(shown: Shown) -> None:
    assert shown("mapped", 0) == [f"{INTERNATIONAL}/api-lockconference", None]


def test_a_task_that_met_an_error_links_to_the_error_codes_as_well(shown: Shown) -> None:
    links = [f"{INTERNATIONAL}/api-lockconference", f"{INTERNATIONAL}/server-api-error-codes-1"]
    assert shown("mapped", 1) == links


def test_a_task_that_calls_dingtalk_in_china_links_to_the_site_there(shown: Shown) -> None:
    assert shown("in_china") == [f"{CHINA}/api-lockconference", f"{CHINA}/server-api-error-codes-1"]


@pytest.mark.parametrize("task_id", ["two_segments", "no_secret", "no_connection"])
def test_a_task_that_made_no_call_links_to_nothing(shown: Shown, task_id: str) -> None:
    assert shown(task_id) == [None, None]


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("https://api.dingtalk.io", INTERNATIONAL),
        ("https://api.dingtalk.com", CHINA),
        ("http://127.0.0.1:8790", INTERNATIONAL),
    ],
)
def test_links_lead_to_the_site_that_goes_with_the_host(host: str, site: str) -> None:
    task: Any = LockConferenceOperator(task_id="lock", conference_id="1")
    ti = Instance()
    error = ConferenceClosedError("confClosed", code="confClosed")
    keep_links(task, {"ti": ti}, host, "api-lockconference", error)  # type: ignore[typeddict-item]
    assert (getattr(task, LINKS_KEY) if AIRFLOW_V_3_0_PLUS else ti.xcoms[LINKS_KEY]) == {
        "documentation": f"{site}/api-lockconference",
        "error": f"{site}/server-api-error-codes-1",
    }


@pytest.mark.parametrize("operator", [LockConferenceOperator, UnlockConferenceOperator])
def test_both_operators_links_are_named_for_people(operator: Any) -> None:
    assert [link.name for link in operator.operator_extra_links] == [
        "DingTalk documentation",
        "DingTalk error codes",
        "Join the meeting",
    ]

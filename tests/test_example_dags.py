"""The example DAGs are what a user copies: they parse without a murmur, and do what they say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_provider_dingconf.sandbox import Sandbox

EXAMPLES = Path(__file__).parent.parent / "example_dags"


@pytest.fixture
def dag_bag(airflow_db: None) -> Any:
    """Return the examples as Airflow reads them, from its own folder of DAGs."""
    from airflow import settings

    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow before 3.2
        from airflow.models.dagbag import DagBag

    shutil.rmtree(settings.DAGS_FOLDER, ignore_errors=True)  # other tests leave their DAGs there
    shutil.copytree(EXAMPLES, settings.DAGS_FOLDER)
    return DagBag(settings.DAGS_FOLDER)


def test_every_example_parses_without_errors_and_warnings(dag_bag: Any) -> None:
    assert dag_bag.import_errors == {}
    assert dag_bag.captured_warnings == {}
    assert set(dag_bag.dags) == {file.stem for file in EXAMPLES.glob("*.py")}


def test_the_lock_example_locks_works_and_unlocks(dag_bag: Any, sandbox: Sandbox, conn: Any) -> None:
    meeting = sandbox.create_conference("Release")
    run = dag_bag.dags["example_lock_conference"].test(run_conf={"conference_id": meeting})
    assert {ti.task_id: ti.state for ti in run.get_task_instances()} == dict.fromkeys(
        ("lock_conference", "announce", "unlock_conference", "unlock_conference_done"), "success"
    )
    assert [call.json()["action"] for call in sandbox.calls_of("lock", "unlock")] == ["lock", "unlock"]
    assert sandbox.join(meeting, "latecomer")

"""Tasks as Airflow runs them: the DAG files of tests, and the results of a run."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AIRFLOW_V_3_0_PLUS, DAG, TaskGroup

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

# The DAG files


def write_dag_files(files: dict[str, str]) -> Path:
    """Write DAG files, by their names, into Airflow's folder, without others: each run reads all that is there."""
    folder = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def dag_bag(files: dict[str, str]) -> Any:
    """Return the DAGs of files as Airflow reads them."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow before 3.2
        from airflow.models.dagbag import DagBag

    return DagBag(str(write_dag_files(files)))


def names_of(source: str, name: str) -> dict[str, Any]:
    """Return what a DAG file defines, by name."""
    return runpy.run_path(str(write_dag_files({name: source}) / f"{name}.py"))


def run_dag(dag_id: str, source: str) -> Any:
    """Run a DAG, as its file says, to the end."""
    return names_of(source, dag_id)["dag"].test()


@contextlib.contextmanager
def connected_sandbox() -> Iterator[Sandbox]:
    """Run a sandbox that the default connection leads to: for a run that many tests look at."""
    token_cache.forget()
    with pytest.MonkeyPatch.context() as patch, Sandbox() as sandbox:
        unlimited = sandbox.connection_json(extra={"calls_per_second": 1000})
        patch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", unlimited)
        yield sandbox


@contextlib.contextmanager
def all_output(file: Path) -> Iterator[Path]:
    """Write standard output, standard error and all logs into a file."""
    with file.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        kept = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        try:
            yield file
        finally:
            out.flush()
            for number, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)


# The results of a run


@dataclass
class Ran:
    """What Airflow made of a DAG, and the calls that DingTalk saw."""

    dag: Any
    run_state: str
    instances: dict[tuple[str, int], Any]
    xcoms: dict[tuple[str, int, str], Any]
    rendered: dict[str, Any]
    sandbox: Sandbox
    calls: list[Any]
    log: str

    @classmethod
    def of(cls, run: Any, sandbox: Sandbox, *others: Sandbox, log: str = "") -> Ran:
        """Return what Airflow made of a run that called these sandboxes."""
        instances = {(ti.task_id, ti.map_index): ti for ti in run.get_task_instances()}
        calls = [call for each in (sandbox, *others) for call in each.calls]
        return cls(run.dag, str(run.state), instances, _xcoms(run), _rendered(run), sandbox, calls, log)

    def state(self, task: str) -> str:
        return str(self.instances[task, -1].state)

    def states(self, *tasks: str) -> list[str]:
        return [self.state(task) for task in tasks]

    def tries(self, task: str) -> int:
        return int(self.instances[task, -1].try_number)

    def result(self, task: str) -> Any:
        """Return what a task returned."""
        return self.xcoms.get((task, -1, "return_value"))

    def link(self, task: str, link: Any, map_index: int = -1) -> str:
        """Return the address that Airflow shows as a task's link; empty if there is none."""
        if AIRFLOW_V_3_0_PLUS:  # the worker has pushed it
            return str(self.xcoms.get((task, map_index, link.xcom_key)) or "").strip('"')
        from airflow.serialization.serialized_objects import SerializedDAG

        # The web server asks the operator of the serialized DAG.
        shown: Any = SerializedDAG.from_dict(SerializedDAG.to_dict(self.dag)).get_task(task)
        return shown.get_extra_links(self.instances[task, map_index], link.name) or ""

    def links(self, task: str, map_index: int = -1) -> list[str]:
        """Return the addresses of a task's links: to the call, the error codes, and the meeting."""
        return [self.link(task, link, map_index) for link in LockConferenceOperator.operator_extra_links]

    def calls_of(self, meeting: str, *names: str) -> list[Any]:
        """Return the calls of these names about a meeting."""
        return [call for call in self.calls if call.name in names and call.conference_id == meeting]

    def actions(self, meeting: str) -> list[str]:
        """Return what was done to a meeting, in order."""
        return [call.name for call in self.calls_of(meeting, "lock", "unlock")]

    @property
    def tokens(self) -> list[str]:
        """The access tokens that were used."""
        return sorted({token for call in self.calls if (token := call.header("x-acs-dingtalk-access-token"))})


def _xcoms(run: Any) -> dict[tuple[str, int, str], Any]:
    from airflow.models import xcom
    from airflow.utils.session import create_session

    model = getattr(xcom, "XComModel", None) or xcom.BaseXCom
    with create_session() as session:
        found = session.query(model.task_id, model.map_index, model.key, model.value)
        return {
            (task, index, key): json.loads(value) if isinstance(value, bytes) else value
            for task, index, key, value in found.filter(model.run_id == run.run_id)
        }


def _rendered(run: Any) -> dict[str, Any]:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Fields
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.query(Fields.task_id, Fields.rendered_fields)
        return dict(found.filter(Fields.run_id == run.run_id).all())


# Tasks that are only made

LEVELS = ("dag", "group", "task")


@contextlib.contextmanager
def default_args_of(level: str, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give these ``default_args`` to the DAG, the group or the task of a block, and yield those of the task."""
    args = {each: given if each == level else {} for each in LEVELS}
    with DAG("made", schedule=None, default_args=args["dag"]), TaskGroup("g", default_args=args["group"]):
        yield args["task"]


# A task whose ``execute`` is called directly


class Instance:
    """A task instance of one try, by default the only one, which keeps the XComs that are pushed."""

    dag_id, run_id, task_id, map_index = "dag", "run", "task", -1

    def __init__(self, try_number: int = 1, tries: int = 1) -> None:
        self.try_number, self.max_tries = try_number, tries - 1
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.xcoms.get(key)

    def get_first_reschedule_date(self, _context: Any) -> None: ...

"""Tasks as Airflow runs them: the DAG files of tests, and what becomes of a run."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.links import LINKS_KEY
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
        patch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", sandbox.connection_json())
        yield sandbox


@contextlib.contextmanager
def all_output(file: Path) -> Iterator[Path]:
    """Write what is said on standard output and error, and in logs, into a file."""
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


# What becomes of a run


@dataclass
class Ran:
    """What Airflow made of a DAG, and the calls that DingTalk saw."""

    run_state: str = ""
    instances: dict[tuple[str, int], Any] = field(default_factory=dict)
    xcoms: dict[tuple[str, int, str], Any] = field(default_factory=dict)
    rendered: dict[str, Any] = field(default_factory=dict)
    calls: list[Any] = field(default_factory=list)
    log: str = ""

    @classmethod
    def of(cls, run: Any, calls: list[Any], log: str = "") -> Ran:
        """Return what Airflow made of a run."""
        instances = {(ti.task_id, ti.map_index): ti for ti in run.get_task_instances()}
        return cls(str(run.state), instances, xcoms_of(run), rendered_of(run), calls, log)

    def state(self, task: str) -> str:
        return str(self.instances[task, -1].state)

    def states(self, *tasks: str) -> list[str]:
        return [self.state(task) for task in tasks]

    def tries(self, task: str) -> int:
        return int(self.instances[task, -1].try_number)

    def result(self, task: str) -> Any:
        """Return what a task returned."""
        return self.xcoms.get((task, -1, "return_value"))

    def link(self, task: str, link: Any) -> str:
        """Return the address of a task's link; empty where there is none."""
        if AIRFLOW_V_3_0_PLUS:
            return str(self.xcoms[task, -1, link.xcom_key]).strip('"')
        return self.xcoms[task, -1, LINKS_KEY].get(link.kept_as) or ""

    def links(self, task: str) -> list[str]:
        """Return the addresses of a task's links: to the call, the error codes, and the meeting."""
        return [self.link(task, link) for link in LockConferenceOperator.operator_extra_links]

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


def xcoms_of(run: Any) -> dict[tuple[str, int, str], Any]:
    from airflow.models import xcom
    from airflow.utils.session import create_session

    model = getattr(xcom, "XComModel", None) or xcom.BaseXCom
    with create_session() as session:
        found = session.query(model.task_id, model.map_index, model.key, model.value)
        return {
            (task, index, key): json.loads(value) if isinstance(value, bytes) else value
            for task, index, key, value in found.filter(model.run_id == run.run_id)
        }


def rendered_of(run: Any) -> dict[str, Any]:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Fields
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.query(Fields.task_id, Fields.rendered_fields)
        return dict(found.filter(Fields.run_id == run.run_id).all())


# A task whose ``execute`` is called directly


class Instance:
    """A task instance, of which the operator knows how to push an XCom, and that this is its only try."""

    try_number = 1
    max_tries = 0

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

"""What a user does with a running Airflow 3, over its REST API."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from cryptography.fernet import Fernet

from system.airflow_processes import PATIENCE, DeploymentError, environment, free_port, wait_for

USER = "admin"
PAGE = 1000
_ENDED = ("success", "failed")
_UNAUTHORIZED = 401


@dataclass(frozen=True)
class Run:
    """One run of a DAG."""

    airflow: Airflow
    dag_id: str
    run_id: str

    @property
    def path(self) -> str:
        return f"dags/{self.dag_id}/dagRuns/{self.run_id}"

    @property
    def state(self) -> str:
        return self.airflow.request("GET", self.path)["state"]

    def tasks(self) -> list[dict[str, Any]]:
        """Return the task instances."""
        return self.airflow.request("GET", f"{self.path}/taskInstances?limit={PAGE}")["task_instances"]

    def states(self) -> dict[str, str | None]:
        """Return the state of each task, by its id."""
        return {task["task_id"]: task["state"] for task in self.tasks()}

    def task(self, task_id: str) -> dict[str, Any]:
        """Return a task instance."""
        return self.airflow.request("GET", f"{self.path}/taskInstances/{task_id}")

    def mark(self, task_id: str, state: str) -> None:
        """Mark a task with a state; Airflow ends the task if it runs."""
        self.airflow.request("PATCH", f"{self.path}/taskInstances/{task_id}", new_state=state)

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition is true, and return its value; fail early if the run ends."""

        def value() -> Any:
            ended = self.state in _ENDED
            found = condition()
            if ended and not found:
                raise DeploymentError(f"the run of {self.dag_id} ended without {what}: {self.states()}")
            return found

        return wait_for(value, what, every=0.5)

    def end(self, seconds: float = PATIENCE) -> str:
        """Wait until the run ends, and return the state it ends in."""
        wait_for(lambda: self.state in _ENDED, f"end of {self.dag_id}", seconds, every=0.5)
        return self.state


class Airflow:
    """An Airflow in a throw-away home.

    :param home: a directory to throw away.
    :param dags: the directory of the DAGs.
    :param settings: more environment variables.
    """

    def __init__(self, home: Path, dags: Path, settings: Mapping[str, str]) -> None:
        self.home = home
        self.logs = home / "component-logs"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.password = secrets.token_urlsafe(9)
        self.fernet_key = Fernet.generate_key().decode()
        self._session = requests.Session()
        self._session.trust_env = False
        (home / "tmp").mkdir(parents=True)
        passwords = home / "passwords.json"
        passwords.write_text(json.dumps({USER: self.password}))
        self.env = environment(
            home,
            TMPDIR=str(home / "tmp"),
            AIRFLOW__API__BASE_URL=self.url,
            AIRFLOW__API__HOST="127.0.0.1",
            AIRFLOW__API__MAXIMUM_PAGE_LIMIT=str(PAGE),
            AIRFLOW__API__PORT=self.url.rpartition(":")[2],
            AIRFLOW__API__SECRET_KEY=secrets.token_hex(32),
            AIRFLOW__API_AUTH__JWT_SECRET=secrets.token_hex(64),
            AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
            AIRFLOW__CORE__DAGS_FOLDER=str(dags),
            AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{self.url}/execution/",
            AIRFLOW__CORE__FERNET_KEY=self.fernet_key,
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=f"{USER}:admin",
            # Airflow's own intervals are for deployments that last longer, on machines of their own.
            AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL="300",
            AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC="1",
            AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME="0.5",
            AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT="60",
        )
        self.env |= settings

    def request(self, method: str, path: str, **content: Any) -> Any:
        """Make a call of the REST API, and return the JSON of the response.

        :param content: the body.
        """

        def send() -> requests.Response:
            url = f"{self.url}/api/v2/{path}"
            return self._session.request(method, url, json=content or None, timeout=60)

        response = send()
        if response.status_code == _UNAUTHORIZED:
            self._log_in()
            response = send()
        if not response.ok:
            said = f"{method} {path}: {response.status_code} {response.text}"
            raise requests.HTTPError(said, response=response)
        return response.json() if response.content else None

    def _log_in(self) -> None:
        credentials = {"username": USER, "password": self.password}
        response = self._session.post(f"{self.url}/auth/token", json=credentials, timeout=60)
        response.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    def connect(self, fields: Mapping[str, Any], conn_id: str = "dingtalk_default") -> None:
        """Make a connection, a row of the database."""
        self.request("POST", "connections", connection_id=conn_id, **fields)

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Wait until the DAGs can be run."""

        def there() -> bool:
            return {*dag_ids} <= {dag["dag_id"] for dag in self.request("GET", "dags")["dags"]}

        wait_for(there, f"DAGs {', '.join(dag_ids)}")

    def run(self, dag_id: str, **conf: Any) -> Run:
        """Start a run of a DAG."""
        made = self.request("POST", f"dags/{dag_id}/dagRuns", logical_date=None, conf=conf)
        return Run(self, dag_id, made["dag_run_id"])

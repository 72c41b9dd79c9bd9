"""One deployment of Airflow: its settings, its components, and what its users do with it, over the REST API."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from cryptography.fernet import Fernet

from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_processes import (
    BIN,
    PATIENCE,
    Component,
    DeploymentError,
    airflow,
    environment,
    free_port,
    wait_for,
)
from system.deployments.servers import Postgres, running_postgres

DAGS = Path(__file__).parent / "dags"
ENDED = ("success", "failed")
_ADMIN = "admin"
_UNAUTHORIZED = 401
_PAGE = 1000
_WIDTH = 300
"""Characters: more of a line of a log is not shown."""

# Seconds. Airflow's own are for deployments that last longer than a minute, on machines of their own.
_PACE = {
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}

SILENCE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
}
"""Seconds of silence after which a worker counts as dead: many of its heartbeats."""


@dataclass(frozen=True)
class Run:
    """One run of a DAG."""

    deployment: Deployment
    dag_id: str
    run_id: str

    @property
    def path(self) -> str:
        return f"dags/{self.dag_id}/dagRuns/{self.run_id}"

    @property
    def state(self) -> str:
        return self.deployment.request("GET", self.path)["state"]

    def tasks(self) -> list[dict[str, Any]]:
        """Return the task instances."""
        return self.deployment.request("GET", f"{self.path}/taskInstances?limit={_PAGE}")["task_instances"]

    def states(self) -> dict[str, str | None]:
        """Return the state of each task, by its id."""
        return {task["task_id"]: task["state"] for task in self.tasks()}

    def task(self, task_id: str) -> dict[str, Any]:
        """Return a task instance."""
        return self.deployment.request("GET", f"{self.path}/taskInstances/{task_id}")

    def mark(self, task_id: str, state: str) -> None:
        """Say in which state a task is, whatever it does; Airflow ends one that runs."""
        self.deployment.request("PATCH", f"{self.path}/taskInstances/{task_id}", new_state=state)

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Ask until the answer is true, and return it; end early where the run does."""

        def asked() -> Any:
            ended = self.state in ENDED
            answer = condition()
            if ended and not answer:
                raise DeploymentError(f"the run of {self.dag_id} ended without {what}: {self.states()}")
            return answer

        return wait_for(asked, what, every=0.5)

    def end(self, seconds: float = PATIENCE) -> str:
        """Wait until the run ends, and return the state it ends in."""

        def ended() -> str:
            return state if (state := self.state) in ENDED else ""

        return wait_for(ended, f"end of {self.dag_id}", seconds, every=1)


class Deployment:
    """An Airflow on PostgreSQL, with a connection to a sandbox among its rows.

    :param home: a directory to throw away.
    :param postgres: the database.
    :param sandbox: the DingTalk that ``dingtalk_default`` leads to.
    :param settings: more environment variables.
    """

    def __init__(self, home: Path, postgres: Postgres, sandbox: Sandbox, settings: dict[str, str]) -> None:
        self.home = home
        self.logs = home / "component-logs"
        self.postgres = postgres
        self.sandbox = sandbox
        self.fernet_key = Fernet.generate_key().decode()
        self.components: dict[str, Component] = {}
        self._arguments: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
        self._session = requests.Session()
        self._session.trust_env = False
        self._password = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.env = self._environment() | settings

    def _environment(self) -> dict[str, str]:
        temporary = self.home / "tmp"
        temporary.mkdir(parents=True)
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({_ADMIN: self._password}))
        settings = {
            "TMPDIR": str(temporary),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__MAXIMUM_PAGE_LIMIT": str(_PAGE),
            "AIRFLOW__API__PORT": self.url.rpartition(":")[2],
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__FERNET_KEY": self.fernet_key,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{_ADMIN}:admin",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.postgres.url(),
        }
        return environment(self.home, **_PACE, **settings)

    # Components

    def migrate(self) -> None:
        """Make the tables."""
        airflow("db", "migrate", env=self.env)

    def start(self, name: str, *arguments: str, **settings: str) -> Component:
        """Start one of Airflow's components.

        :param arguments: of the command ``airflow``.
        :param settings: environment variables for this component alone.
        """
        self._arguments[name] = arguments, settings
        component = Component(name, [str(BIN / "airflow"), *arguments], self.env | settings, self.logs)
        self.components[name] = component
        return component

    def start_again(self, name: str) -> None:
        """Start a component that has ended, or that was ended, as it was started before."""
        arguments, settings = self._arguments[name]
        self.start(name, *arguments, **settings)

    def start_ended_again(self) -> None:
        """Start the components again that have ended by themselves, as the supervisor of a deployment does."""
        for name, component in list(self.components.items()):
            if component.has_ended:
                self.start_again(name)

    def kill(self, name: str) -> None:
        """End a component as a power cut does."""
        self.components.pop(name).kill()

    def close(self) -> None:
        """End all components, without waiting for what they still have to do."""
        self._session.close()
        for component in self.components.values():
            component.kill()

    def said(self, lines: int = 25) -> Iterator[tuple[str, str]]:
        """Yield how the components' and the newest tasks' logs end."""
        newest = sorted(self.task_logs(), key=lambda path: path.stat().st_mtime)[-5:]
        for log in [*sorted(self.logs.glob("*.log")), *newest]:
            end = log.read_text(errors="replace").splitlines()[-lines:]
            yield str(log.relative_to(self.home)), "\n".join(line[:_WIDTH] for line in end)

    def task_logs(self) -> list[Path]:
        return sorted((self.home / "logs").glob("dag_id=*/**/*.log"))

    # What a user does

    def request(self, method: str, path: str, **content: Any) -> Any:
        """Make a call of the REST API, and return what it answers.

        :param content: the body.
        """
        url = f"{self.url}/api/v2/{path}"
        answer = self._session.request(method, url, json=content or None, timeout=60)
        if answer.status_code == _UNAUTHORIZED:
            self._log_in()
            answer = self._session.request(method, url, json=content or None, timeout=60)
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text}", response=answer)
        return answer.json() if answer.content else None

    def _log_in(self) -> None:
        credentials = {"username": _ADMIN, "password": self._password}
        answer = self._session.post(f"{self.url}/auth/token", json=credentials, timeout=60)
        answer.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def connect(self) -> None:
        """Make the connection ``dingtalk_default``, a row of the database."""
        fields = json.loads(self.sandbox.connection_json())
        self.request("POST", "connections", connection_id="dingtalk_default", **fields)

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Wait until the DAGs are there to be run."""

        def there() -> bool:
            return {*dag_ids} <= {dag["dag_id"] for dag in self.request("GET", "dags")["dags"]}

        wait_for(there, f"DAGs {', '.join(dag_ids)}")

    def run(self, dag_id: str, **conf: Any) -> Run:
        """Start a run of a DAG."""
        made = self.request("POST", f"dags/{dag_id}/dagRuns", logical_date=None, conf=conf)
        return Run(self, dag_id, made["dag_run_id"])


@contextmanager
def deployed(home: Path, sandbox: Sandbox, **settings: str) -> Iterator[Deployment]:
    """Run a deployment with its api-server, scheduler and dag-processor for a block, and log how long it took.

    :param settings: more environment variables.
    """
    began = time.monotonic()
    with running_postgres(home / "component-logs") as postgres:
        deployment = Deployment(home, postgres, sandbox, settings)
        try:
            deployment.migrate()
            api_server = deployment.start("api-server", "api-server")
            deployment.start("scheduler", "scheduler", "--skip-serve-logs")
            deployment.start("dag-processor", "dag-processor")
            api_server.wait_for_address(f"{deployment.url}/api/v2/version")
            deployment.connect()
            print(f"deployed in {time.monotonic() - began:.0f} s")
            yield deployment
        finally:
            deployment.close()

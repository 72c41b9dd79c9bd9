"""``airflow standalone`` in a throw-away home, with a login, and what is asked of it over the REST API."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from system.airflow_processes import BIN, Component, environment, free_port, running, wait_for

ENDED = ("success", "failed")
USER = "admin"
LONGEST = 600
"""Seconds: for what Airflow does with several processes at once."""

# A person waits for seconds, not minutes; and a small machine has to run a browser as well.
_PACE = {
    "AIRFLOW__CORE__PARALLELISM": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
}


class Standalone:
    """A running ``airflow standalone``.

    :param url: its address.
    :param password: that of the only user, :data:`USER`.
    :param component: its process.
    """

    def __init__(self, url: str, password: str, component: Component) -> None:
        self.url = url
        self.password = password
        self.component = component
        self._session = requests.Session()
        self._session.trust_env = False

    def wait_until_ready(self) -> None:
        """Wait until each part of it has given a sign of life."""

        def healthy() -> bool:
            parts = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=60).json()
            return all(
                parts[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "triggerer")
            )

        self.component.wait_for_address(f"{self.url}/api/v2/version", seconds=LONGEST)
        self.component.wait_for(healthy, f"healthy Airflow at {self.url}", seconds=LONGEST)
        credentials = {"username": USER, "password": self.password}
        answer = self._session.post(f"{self.url}/auth/token", json=credentials, timeout=60)
        answer.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def request(self, method: str, path: str, **content: Any) -> Any:
        """Make a call of the REST API, and return what it answers.

        :param content: the body.
        """
        answer = self._session.request(method, f"{self.url}/api/v2/{path}", json=content or None, timeout=60)
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text}", response=answer)
        return answer.json() if answer.content else None

    def connect(self, fields: Mapping[str, Any]) -> None:
        """Make the connection ``dingtalk_default``."""
        self.request("POST", "connections", connection_id="dingtalk_default", **fields)

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Wait until the DAGs are there to be run."""

        def there() -> bool:
            return {*dag_ids} <= {dag["dag_id"] for dag in self.request("GET", "dags")["dags"]}

        self.component.wait_for(there, f"DAGs {', '.join(dag_ids)}")

    def run(self, dag_id: str, **conf: Any) -> str:
        """Run a DAG to its end, and return the id of the run."""
        made = self.request("POST", f"dags/{dag_id}/dagRuns", logical_date=None, conf=conf)
        self.end(dag_id, made["dag_run_id"])
        return str(made["dag_run_id"])

    def end(self, dag_id: str, run_id: str) -> str:
        """Wait until a run ends, and return the state it ends in."""
        path = f"dags/{dag_id}/dagRuns/{run_id}"

        def ended() -> str:
            state = str(self.request("GET", path)["state"])
            return state if state in ENDED else ""

        return wait_for(ended, f"end of {dag_id}", seconds=LONGEST, every=0.5)


@contextmanager
def running_standalone(home: Path, dags: Path, **settings: str) -> Iterator[Standalone]:
    """Run ``airflow standalone`` for a block.

    :param home: a directory to throw away.
    :param dags: the DAGs' directory.
    :param settings: more environment variables.
    """
    port, password = free_port(), secrets.token_urlsafe(9)
    url = f"http://127.0.0.1:{port}"
    (home / "tmp").mkdir(parents=True)
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({USER: password}))
    own = environment(
        home,
        **_PACE,
        TMPDIR=str(home / "tmp"),
        AIRFLOW__API__BASE_URL=url,
        AIRFLOW__API__HOST="127.0.0.1",
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__API__SECRET_KEY=secrets.token_hex(32),
        AIRFLOW__API_AUTH__JWT_SECRET=secrets.token_hex(64),
        AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
        AIRFLOW__CORE__DAGS_FOLDER=str(dags),
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{url}/execution/",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=f"{USER}:admin",
        AIRFLOW__CORE__TEST_CONNECTION="Enabled",
        AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT=str(free_port()),
        AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(free_port()),
    )
    command = [str(BIN / "airflow"), "standalone"]
    with running("standalone", command, own | settings, home / "component-logs") as component:
        made = Standalone(url, password, component)
        made.wait_until_ready()
        yield made

"""One deployment of Airflow: its settings, its components, and what it leaves."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_api import Airflow
from system.airflow_processes import BIN, Component, airflow
from system.deployments.servers import Postgres, running_postgres

DAGS = Path(__file__).parent / "dags"
_LOG_WIDTH = 300
"""Characters: more of a line of a log is not shown."""

# Seconds.
_INTERVALS = {
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}

SILENCE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
}
"""Seconds of silence after which a worker counts as dead: many of its heartbeats."""


class Deployment(Airflow):
    """An Airflow on PostgreSQL.

    :param home: a directory to throw away.
    :param dags: the directory of the DAGs.
    :param postgres: the database.
    :param settings: more environment variables.
    """

    def __init__(self, home: Path, dags: Path, postgres: Postgres, settings: Mapping[str, str]) -> None:
        database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url()}
        super().__init__(home, dags, {**_INTERVALS, **database, **settings})
        self.postgres = postgres
        self.components: dict[str, Component] = {}
        self._arguments: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}

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
        """Start a component that has ended as it was started before."""
        arguments, settings = self._arguments[name]
        self.start(name, *arguments, **settings)

    def start_ended_again(self) -> None:
        """Start the components that have ended, as the supervisor of a deployment does."""
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

    def log_ends(self, lines: int = 25) -> Iterator[tuple[str, str]]:
        """Yield how the components' and the newest tasks' logs end."""
        newest = sorted(self.task_logs(), key=lambda path: path.stat().st_mtime)[-5:]
        for log in [*sorted(self.logs.glob("*.log")), *newest]:
            end = log.read_text(errors="replace").splitlines()[-lines:]
            yield str(log.relative_to(self.home)), "\n".join(line[:_LOG_WIDTH] for line in end)

    def task_logs(self) -> list[Path]:
        return sorted((self.home / "logs").glob("dag_id=*/**/*.log"))

    def remains(self) -> dict[str, bytes]:
        """Return all files and the database, by where they are."""
        files = {str(path): path.read_bytes() for path in self.home.rglob("*") if path.is_file()}
        return files | {"the database": self.postgres.dump().encode()}


def secrets_of(sandbox: Sandbox) -> dict[str, str]:
    """Return the client secret and all used access tokens, by what they are."""
    tokens = {call.header("x-acs-dingtalk-access-token") or "" for call in sandbox.calls} - {""}
    assert tokens
    numbered = {f"token {number}": token for number, token in enumerate(sorted(tokens))}
    return {"client secret": sandbox.client_secret, **numbered}


def encodings(secret: str) -> set[bytes]:
    """Return a secret as it is, as in a URL, in JSON, and in base64 at whatever place of a longer text."""
    texts = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    found = {text.encode() for text in texts}
    for before in range(3):
        # Without the characters that depend on the neighbours.
        whole = base64.b64encode(bytes(before) + secret.encode())
        inner = whole[-(-before * 8 // 6) : len(whole) - 4]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def leaks(secrets: Mapping[str, str], places: Mapping[str, bytes]) -> set[tuple[str, str]]:
    """Return which secret is at which place, in any encoding."""
    return {
        (what, place)
        for what, secret in secrets.items()
        for encoded in encodings(secret)
        for place, content in places.items()
        if encoded in content
    }


@contextmanager
def deployed(home: Path, sandbox: Sandbox, dags: Path = DAGS, **settings: str) -> Iterator[Deployment]:
    """Run a deployment with its api-server, scheduler and dag-processor for a block.

    ``dingtalk_default`` leads to the sandbox.

    :param settings: more environment variables.
    """
    began = time.monotonic()
    with running_postgres(home / "component-logs") as postgres:
        deployment = Deployment(home, dags, postgres, settings)
        try:
            airflow("db", "migrate", env=deployment.env)
            api_server = deployment.start("api-server", "api-server")
            deployment.start("scheduler", "scheduler", "--skip-serve-logs")
            deployment.start("dag-processor", "dag-processor")
            api_server.wait_for_address(f"{deployment.url}/api/v2/version")
            deployment.connect(json.loads(sandbox.connection_json()))
            print(f"deployed in {time.monotonic() - began:.0f} s")
            yield deployment
        finally:
            deployment.close()

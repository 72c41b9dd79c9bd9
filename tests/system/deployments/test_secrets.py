"""No secret is anywhere but in the connection's row, encrypted: after all examples, with all kinds of connection."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.fernet import Fernet

from airflow_provider_dingconf.sandbox import Sandbox
from system.deployments.deployment import DAGS, Deployment, deployed, leaks, secrets_of

EXAMPLES = Path(__file__).parents[3] / "example_dags"
WRONG_SECRET = 'wrong+secret/of "an app"=&<%'.replace(" ", "_")
PROXY_PASSWORD = "password-of-the-proxy"


def connections(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    """Return the fields of each kind of connection, and of some that do not work."""
    proxies = {"https": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9"}
    kinds: tuple[Any, ...] = ("internal", "unified", "third_party", "static_token", "unpermitted")
    return {
        "dingtalk_default": sandbox.connection("third_party"),
        **{kind: sandbox.connection(kind) for kind in kinds},
        "wrong": sandbox.connection(password=WRONG_SECRET),
        "behind_a_proxy": sandbox.connection(host="https://dingtalk.invalid", extra={"proxies": proxies}),
    }


@contextmanager
def process_list() -> Iterator[set[str]]:
    """Look at the process list again and again during a block, and give what was seen."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            seen.update(" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, dingtalk: Sandbox) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("secrets")
    dags = home / "dags"
    shutil.copytree(EXAMPLES, dags)
    shutil.copy(DAGS / "every_connection.py", dags)
    settings = {
        "AIRFLOW__CORE__PARALLELISM": "6",
        "AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES": "suite_ticket",
    }
    with deployed(home, dingtalk, dags, **settings) as running:
        running.start("triggerer", "triggerer", "--skip-serve-logs")
        running.request("DELETE", "connections/dingtalk_default")
        for conn_id, fields in connections(dingtalk).items():
            running.connect(fields | {"extra": json.dumps(fields["extra"])}, conn_id)
        running.wait_for_dags("every_connection", *(file.stem for file in EXAMPLES.glob("*.py")))
        yield running


@pytest.fixture(scope="module")
def left(deployment: Deployment, dingtalk: Sandbox) -> dict[str, bytes]:
    """Run all examples, and a lock over each connection; return all that remains, by where it is."""
    meetings = [dingtalk.create_conference(f"Exam {number}") for number in range(5)]
    confs: dict[str, dict[str, Any]] = {
        "every_connection": {"conference_id": meetings[0]},
        "example_lock_conference": {"conference_id": meetings[1]},
        "example_mapped_locks": {"conference_ids": meetings},
        "example_outcomes": {"conference_id": meetings[2]},
        "example_taskflow": {"conference_id": meetings[3]},
        "example_sandbox_tour": {},
        "example_lock_all_running": {"title_pattern": "^Exam "},
        "example_lock_when_started": {},
        "example_exam": {"conference_id": meetings[0]},
        "example_conference": {"creator_id": "chris"},
        "example_any_call": {"conference_id": meetings[1], "host_id": "chris", "guest_id": "ann"},
        "example_wait_and_lock": {"room_code": dingtalk.conference(meetings[4]).room_code},
    }
    assert confs.keys() == {"every_connection", *(file.stem for file in EXAMPLES.glob("*.py"))}
    with process_list() as processes:
        runs = {dag_id: deployment.run(dag_id, **conf) for dag_id, conf in confs.items()}
        # That of example_lock_when_started, which stays.
        runs["every_connection"].wait_for(
            lambda: deployment.postgres.rows("SELECT 1 FROM trigger WHERE classpath LIKE %s", "%dingconf%"),
            "row of a trigger",
        )
        triggers = deployment.postgres.rows("SELECT kwargs FROM trigger")
        ends = {dag_id: run.end() for dag_id, run in runs.items()}
    assert ends == dict.fromkeys(runs, "success") | {"every_connection": "failed"}
    works = dict.fromkeys(("internal", "unified", "third_party", "static_token"), "success")
    fails = dict.fromkeys(("unpermitted", "wrong", "behind_a_proxy"), "failed")
    assert runs["every_connection"].states() == works | fails
    return deployment.remains() | {
        "the process list": "\n".join(processes).encode(),
        "the triggers": "\n".join(_decrypted(deployment, kwargs) for (kwargs,) in triggers).encode(),
    }


def _decrypted(deployment: Deployment, value: str) -> str:
    if value.startswith("{"):  # Airflow encrypts them, if not always
        return value
    return Fernet(deployment.fernet_key).decrypt(value).decode()


def all_secrets(dingtalk: Sandbox) -> dict[str, str]:
    """Return what nobody may see, by what it is."""
    found = secrets_of(dingtalk)
    assert len(found) >= 1 + 3, "tokens of an internal app, a third-party app, and one fetched elsewhere"
    return found | {
        "suite secret": dingtalk.suite_secret,
        "suite ticket": dingtalk.suite_ticket,
        "wrong secret": WRONG_SECRET,
        "proxy's password": PROXY_PASSWORD,
    }


def test_no_secret_is_anywhere_but_encrypted_in_the_connection(
    deployment: Deployment, dingtalk: Sandbox, left: dict[str, bytes]
) -> None:
    assert len(deployment.task_logs()) >= 20
    assert b"every_connection" in left["the process list"] + left["the database"]
    assert any(place.endswith(".token") for place in left)
    ((encrypted,),) = deployment.postgres.rows("SELECT password FROM connection WHERE conn_id = 'wrong'")
    assert encrypted.encode() in left["the database"]
    assert Fernet(deployment.fernet_key).decrypt(encrypted).decode() == WRONG_SECRET
    in_base64 = base64.b64encode(b"id:" + WRONG_SECRET.encode())
    assert leaks({"secret": WRONG_SECRET}, {"header": in_base64}), "the search finds an encoded secret"
    assert not leaks(all_secrets(dingtalk), left)


def test_who_may_look_at_connections_sees_no_secret_and_a_change_keeps_them(
    deployment: Deployment, dingtalk: Sandbox, left: dict[str, bytes]
) -> None:
    shown = deployment.request("GET", "connections?limit=100")
    for what, secret in all_secrets(dingtalk).items():
        assert secret not in json.dumps(shown), what
    (of_the_app,) = (conn for conn in shown["connections"] if conn["connection_id"] == "third_party")
    assert json.loads(of_the_app["extra"])["suite_ticket"] == "***"
    deployment.request("PATCH", "connections/third_party", **of_the_app | {"description": "changed"})
    ((extra,),) = deployment.postgres.rows("SELECT extra FROM connection WHERE conn_id = 'third_party'")
    kept = json.loads(Fernet(deployment.fernet_key).decrypt(extra))
    assert kept["suite_ticket"] == dingtalk.suite_ticket

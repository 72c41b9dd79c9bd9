"""No secret is anywhere but in the connection's row, encrypted: after all examples, with all kinds of connection."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psutil
import pytest
from cryptography.fernet import Fernet

from airflow_provider_dingconf.sandbox import Sandbox
from system.deployments.deployment import DAGS, Deployment, deployed

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


class ProcessList(threading.Thread):
    """Looks at the process list again and again, for the length of a block."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            for process in psutil.process_iter(["cmdline"]):
                self.seen.add(" ".join(process.info["cmdline"] or []))

    def __enter__(self) -> ProcessList:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self.join()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, dingtalk: Sandbox) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("secrets")
    dags = home / "dags"
    shutil.copytree(EXAMPLES, dags)
    shutil.copy(DAGS / "every_connection.py", dags)
    settings = {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "6",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES": "suite_ticket",
    }
    with deployed(home, dingtalk, **settings) as running:
        running.start("triggerer", "triggerer", "--skip-serve-logs")
        running.request("DELETE", "connections/dingtalk_default")
        for conn_id, fields in connections(dingtalk).items():
            made = fields | {"extra": json.dumps(fields["extra"])}
            running.request("POST", "connections", connection_id=conn_id, **made)
        running.wait_for_dags("every_connection", *(file.stem for file in EXAMPLES.glob("*.py")))
        yield running


@pytest.fixture(scope="module")
def left(deployment: Deployment, dingtalk: Sandbox) -> dict[str, bytes]:
    """Run all examples, and a lock over each connection; return all that is left, by where it is."""
    meetings = [dingtalk.create_conference(f"Exam {number}") for number in range(5)]
    with ProcessList() as processes:
        runs = [
            deployment.run("every_connection", conference_id=meetings[0]),
            deployment.run("example_lock_conference", conference_id=meetings[1]),
            deployment.run("example_mapped_locks", conference_ids=meetings),
            deployment.run("example_outcomes", conference_id=meetings[2]),
            deployment.run("example_taskflow", conference_id=meetings[3]),
            deployment.run("example_sandbox_tour"),
            deployment.run("example_lock_all_running", title_pattern="^Exam "),
            deployment.run("example_lock_when_started"),
            deployment.run("example_exam", conference_id=meetings[0]),
            deployment.run("example_conference", creator_id="chris"),
            deployment.run("example_any_call", conference_id=meetings[1], host_id="chris", guest_id="ann"),
            deployment.run("example_wait_and_lock", room_code=dingtalk.conference(meetings[4]).room_code),
        ]
        # That of example_lock_when_started, which stays.
        runs[0].wait_for(
            lambda: deployment.postgres.rows("SELECT 1 FROM trigger WHERE classpath LIKE %s", "%dingconf%"),
            "row of a trigger",
        )
        waiting = deployment.postgres.rows("SELECT kwargs FROM trigger")
        ends = {run.dag_id: run.end() for run in runs}
    assert {run.dag_id for run in runs} == {"every_connection"} | {
        file.stem for file in EXAMPLES.glob("*.py")
    }
    assert ends == {run.dag_id: "success" for run in runs} | {"every_connection": "failed"}
    states = runs[0].states()
    works = dict.fromkeys(("internal", "unified", "third_party", "static_token"), "success")
    assert states == works | dict.fromkeys(("unpermitted", "wrong", "behind_a_proxy"), "failed")
    files = {str(path): path.read_bytes() for path in deployment.home.rglob("*") if path.is_file()}
    files.pop(str(deployment.home / "passwords.json"), None)
    return files | {
        "the database": deployment.postgres.dump().encode(),
        "the process list": "\n".join(processes.seen).encode(),
        "the triggers": json.dumps(
            [_decrypted(deployment, kwargs) for (kwargs,) in waiting], default=str
        ).encode(),
    }


def _decrypted(deployment: Deployment, value: str) -> str:
    if value.startswith("{"):  # Airflow encrypts them, if not always
        return value
    return Fernet(deployment.fernet_key).decrypt(value).decode()


def secrets_of(dingtalk: Sandbox) -> dict[str, str]:
    """Return what nobody may see, by what it is: every token that was used is among it."""
    tokens = {call.header("x-acs-dingtalk-access-token") for call in dingtalk.calls} - {None}
    assert len(tokens) >= 3, "of an internal app, a third-party app, and one fetched elsewhere"
    return {
        "client secret": dingtalk.client_secret,
        "suite secret": dingtalk.suite_secret,
        "suite ticket": dingtalk.suite_ticket,
        "wrong secret": WRONG_SECRET,
        "proxy's password": PROXY_PASSWORD,
        **{f"token {number}": str(token) for number, token in enumerate(sorted(map(str, tokens)))},
    }


def encodings(secret: str) -> set[bytes]:
    """Return a secret as it is, as in a URL, in JSON, and in base64 at whatever place of a longer text."""
    raw = secret.encode()
    found = {
        raw,
        quote(secret, safe="").encode(),
        quote_plus(secret).encode(),
        json.dumps(secret)[1:-1].encode(),
    }
    for before in range(3):
        # What its neighbours have a part in is left out.
        whole = base64.b64encode(bytes(before) + raw)
        inner = whole[-(-before * 8 // 6) : len(whole) - 4]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def test_no_secret_is_anywhere_but_encrypted_in_the_connection(
    deployment: Deployment, dingtalk: Sandbox, left: dict[str, bytes]
) -> None:
    assert len(deployment.task_logs()) >= 20
    assert b"every_connection" in left["the process list"] + left["the database"]
    assert any(place.endswith(".token") for place in left)
    found = {
        (what, place)
        for what, secret in secrets_of(dingtalk).items()
        for encoded in encodings(secret)
        for place, content in left.items()
        if encoded in content
    }
    assert not found


def test_the_search_would_find_what_it_looks_for(deployment: Deployment, left: dict[str, bytes]) -> None:
    secret = base64.b64encode(b"id:" + WRONG_SECRET.encode())
    assert any(encoded in secret for encoded in encodings(WRONG_SECRET))
    fernet = Fernet(deployment.fernet_key)
    rows = deployment.postgres.rows("SELECT password, extra FROM connection WHERE conn_id = 'wrong'")
    assert fernet.decrypt(rows[0][0]).decode() == WRONG_SECRET
    assert rows[0][0].encode() in left["the database"]


def test_who_may_look_at_connections_sees_no_secret_and_a_change_keeps_them(
    deployment: Deployment, dingtalk: Sandbox, left: dict[str, bytes]
) -> None:
    shown = deployment.request("GET", "connections?limit=100")
    for what, secret in secrets_of(dingtalk).items():
        assert secret not in json.dumps(shown), what
    (of_the_app,) = (conn for conn in shown["connections"] if conn["connection_id"] == "third_party")
    assert json.loads(of_the_app["extra"])["suite_ticket"] == "***"
    deployment.request("PATCH", "connections/third_party", **of_the_app | {"description": "changed"})
    ((extra,),) = deployment.postgres.rows("SELECT extra FROM connection WHERE conn_id = 'third_party'")
    kept = json.loads(Fernet(deployment.fernet_key).decrypt(extra))
    assert kept["suite_ticket"] == dingtalk.suite_ticket

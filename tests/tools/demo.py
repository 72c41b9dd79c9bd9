"""``make demo``: the sandbox tour in a real Airflow, with a line for each step, and checked.

It starts a sandbox and an Airflow of its own, with a database in a temporary directory, runs the DAG
``example_sandbox_tour`` and then asks both what happened: the sandbox which calls it got, with which response
and who could join, Airflow which state each task has. It exits 0 only if all of that is as expected.
It changes nothing outside the temporary directory, and is no test of single errors: those are in the suite.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DAG_ID = "example_sandbox_tour"
AIRFLOW_COMMANDS = f"""
import sys
from airflow.__main__ import main

for command in "db migrate", "dags test {DAG_ID}":
    sys.argv[1:] = command.split()
    main()
"""
PATIENCE = 300
"""Seconds: how long Airflow may take, on the slowest of machines."""


@dataclass(frozen=True)
class Step:
    """One task of the DAG, and what is expected to come of it.

    :param answers: the sandbox's answers to what the task asked.
    :param joins: whether a latecomer could join after it; None where no one tried.
    """

    task_id: str
    conference_id: str
    action: str
    answers: tuple[str, ...]
    joins: bool | None
    state: str


STEPS = (
    Step("lock", "sandbox-open", "lock", ("200",), False, "success"),
    Step("work", "sandbox-open", "-", (), None, "success"),
    Step("unlock", "sandbox-open", "unlock", ("200",), True, "success"),
    Step("lock_ended", "sandbox-ended", "lock", ("400 confClosed",), False, "skipped"),
    Step("lock_forbidden", "sandbox-noPermission", "lock", ("400 noPermission",), True, "failed"),
    Step("lock_flaky", "sandbox-flaky", "lock", (*["500 systemError"] * 2, "200"), False, "success"),
)


class DemoError(Exception):
    """Raised when the demo cannot go on; the log says why."""


@contextmanager
def sandbox(log: Path, *options: str) -> Iterator[str]:
    """Run a sandbox in a process of its own, and return its address."""
    command = [sys.executable, "-m", "airflow_provider_dingconf.sandbox", "--port", "0", *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 30
        while " on http://" not in (said := log.read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise DemoError("The sandbox did not start.")
            time.sleep(0.1)
        yield said.split(" on ", 1)[1].split()[0]
    finally:
        process.terminate()
        process.wait()


def ask(sandbox_url: str, path: str) -> Any:
    """Ask the sandbox for its record; a proxy of the environment is not for the loopback address."""
    with build_opener(ProxyHandler({})).open(f"{sandbox_url}/sandbox/{path}", timeout=10) as answer:
        return json.load(answer)[path]


def connection(sandbox_url: str) -> dict[str, str]:
    """Return the fields of a connection to a sandbox."""
    credentials = {"login": "dingsandboxapp", "password": "sandbox-app-secret"}
    return {"conn_type": "dingtalk", "host": sandbox_url, **credentials}


def environment(home: Path, sandbox_url: str) -> dict[str, str]:
    """Return the environment of an Airflow that knows of nothing but the examples and the sandbox."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parents[2] / "example_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW_CONN_DINGTALK_DEFAULT": json.dumps(connection(sandbox_url)),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        # The processes of a host share access tokens through files in there.
        "TMPDIR": str(home),
    }


def run_dag(env: Mapping[str, str], log: Path) -> None:
    """Create Airflow's database and run the DAG, with Airflow's own commands in one process, into a log."""
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-c", AIRFLOW_COMMANDS],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
    if done.returncode:
        raise DemoError("Airflow did not run the DAG.")


def task_states(home: Path) -> dict[str, str]:
    """Return the states of the DAG's tasks: asking Airflow's own command would take another start of it."""
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        return dict(database.execute("SELECT task_id, state FROM task_instance WHERE dag_id = ?", (DAG_ID,)))


def joined(conference: Mapping[str, Any], task_id: str) -> bool | None:
    """Return whether the latecomer after a task could join; None where no one tried."""
    for people, could in (("participants", True), ("refused", False)):
        if any(person.startswith(f"latecomer after {task_id} ") for person in conference[people]):
            return could
    return None


def tell(sandbox_url: str, states: Mapping[str, str]) -> bool:
    """Print what happened, a line a step, and return whether all of it is as expected."""
    calls = ask(sandbox_url, "calls")
    conferences = {one["conference_id"]: one for one in ask(sandbox_url, "conferences")}
    joining = {True: "joins", False: "cannot join", None: "-"}
    row = "{:<22}{:<16}{:<8}{:<44}{:<13}{:<9}{}"
    print(row.format("meeting", "task", "call", "DingTalk's response", "a latecomer", "state", "").rstrip())
    good = True
    for step in STEPS:
        answers = tuple(
            f"{call['status']} {call['code'] or ''}".rstrip()
            for call in calls
            if (call["call"], call["conference_id"]) == (step.action, step.conference_id)
        )
        joins = joined(conferences[step.conference_id], step.task_id)
        state = states.get(step.task_id, "?")
        met = (answers, joins, state) == (step.answers, step.joins, step.state)
        good &= met
        asked = (step.conference_id, step.task_id, step.action, ", ".join(answers) or "-")
        print(row.format(*asked, joining[joins], state, "ok" if met else "NOT AS EXPECTED"))
    others = [state for task_id, state in states.items() if task_id not in {step.task_id for step in STEPS}]
    return good and all(state == "success" for state in others)


def main() -> int:
    """Run the demo, and return the exit status."""
    # A process that is asked to stop ends the sandbox first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="dingconf-demo-"))
    log = home / "airflow.log"
    try:
        with sandbox(home / "sandbox.log") as url:
            print(f"DAG {DAG_ID} in Airflow {version('apache-airflow')}, DingTalk sandbox on {url}")
            print("Airflow starts; this takes half a minute.\n", flush=True)
            run_dag(environment(home, url), log)
            good = tell(url, task_states(home))
    except (DemoError, subprocess.TimeoutExpired) as error:
        print(error)
        good = False
    if not good:
        print(f"\nNot as expected. Airflow's log: {log}")
        return 1
    took = time.monotonic() - began
    print(f"\nAll 4 outcomes as expected: success, skip, failure, success after errors. ({took:.0f} s)")
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""LocalExecutor on PostgreSQL: api-server, scheduler, dag-processor and triggerer, each its own process."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from airflow_provider_dingconf.sandbox import Fault, Sandbox
from system.airflow_processes import wait_for
from system.deployments.deployment import Deployment, Run, deployed

THROTTLED = "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, dingtalk: Sandbox) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("local-executor")
    settings = {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        # Seconds of silence after which a worker counts as dead: many of its heartbeats.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
    }
    with deployed(home, dingtalk, **settings) as running:
        running.start("triggerer", "triggerer", "--skip-serve-logs")
        running.wait_for_dags("locked_section", "locked_block", "lock", "retried_lock")
        yield running


@pytest.fixture
def meeting(dingtalk: Sandbox) -> str:
    """Return a running meeting, and end the faults of the test before."""
    dingtalk.heal()
    return dingtalk.create_conference()


class Section:
    """A run of ``locked_section``, or of another DAG whose work ends when it is told to."""

    def __init__(
        self, deployment: Deployment, meeting: str, desk: Path, dag_id: str = "locked_section"
    ) -> None:
        self.desk = desk
        self.run: Run = deployment.run(dag_id, conference_id=meeting, desk=str(desk))

    def working(self) -> int:
        """Wait until the work is being done, and return the process that does it."""
        pid = self.desk / "pid"
        self.run.wait_for(pid.exists, "work")
        return int(pid.read_text())

    def finish(self) -> None:
        """Tell the work that it is done."""
        (self.desk / "done").touch()


def calls_about(dingtalk: Sandbox, meeting: str) -> list[tuple[str, int | None]]:
    """Return the calls about a meeting, and how they were answered."""
    return [(call.name, call.status) for call in dingtalk.calls if call.conference_id == meeting]


def waited(dingtalk: Sandbox, meeting: str) -> float:
    """Return the seconds between the first and the last call about a meeting."""
    times = [call.time for call in dingtalk.calls if call.conference_id == meeting]
    return times[-1] - times[0]


def secrets_of(dingtalk: Sandbox) -> list[str]:
    """Return what may be seen by nobody: the client secret, and every access token that was used."""
    tokens = {call.header("x-acs-dingtalk-access-token") for call in dingtalk.calls} - {None}
    assert tokens
    plain = [dingtalk.client_secret, *map(str, tokens)]
    return plain + [base64.b64encode(secret.encode()).decode().rstrip("=") for secret in plain]


def test_a_meeting_is_locked_while_the_work_is_done(
    deployment: Deployment, dingtalk: Sandbox, meeting: str, tmp_path: Path
) -> None:
    section = Section(deployment, meeting, tmp_path)
    section.working()
    assert not dingtalk.join(meeting, "latecomer")
    section.finish()
    assert section.run.end() == "success"
    assert dingtalk.join(meeting, "latecomer")
    assert calls_about(dingtalk, meeting) == [("lock", 200), ("unlock", 200)]


def test_a_task_that_is_marked_as_failed_while_it_locks_leaves_no_lock(
    deployment: Deployment, dingtalk: Sandbox, meeting: str
) -> None:
    """The lock has been made, and the answer is on its way, for longer than Airflow takes to end the task."""
    dingtalk.fail(Fault(call="lock", path=meeting, delay=60, after=True))
    run = deployment.run("lock", conference_id=meeting)
    run.wait_for(lambda: dingtalk.conference(meeting).locked, "lock whose answer is delayed")

    run.mark("lock", "failed")
    wait_for(lambda: not dingtalk.conference(meeting).locked, "unlocked meeting")
    assert run.end() == "failed"
    assert run.states() == {"lock": "failed"}
    *locks, unlock = [name for name, _ in calls_about(dingtalk, meeting)]
    assert ({*locks}, unlock) == ({"lock"}, "unlock")


@pytest.mark.parametrize("victim", ["task", "worker"])
def test_a_meeting_is_unlocked_when_the_work_is_killed(
    deployment: Deployment, dingtalk: Sandbox, meeting: str, tmp_path: Path, victim: str
) -> None:
    section = Section(deployment, meeting, tmp_path)
    task = section.working()
    if victim == "worker":
        # The worker watches over the task, and says at once that it ended. Without it, its silence says so.
        os.kill(psutil.Process(task).ppid(), signal.SIGKILL)
    os.kill(task, signal.SIGKILL)

    end = section.run.end()
    expected = {"lock_conference": "success", "work": "failed", "unlock_conference": "success"}
    assert expected.items() <= section.run.states().items()
    assert dingtalk.join(meeting, "latecomer")
    assert calls_about(dingtalk, meeting) == [("lock", 200), ("unlock", 200)]
    assert end == "failed", "the work was not done"


def end_of(pid: int) -> None:
    """Wait until a process has ended."""
    wait_for(lambda: not psutil.pid_exists(pid), f"end of process {pid}")


@pytest.mark.parametrize(
    ("dag_id", "others"),
    [
        ("locked_section", {"lock_conference": "success", "unlock_conference": "success"}),
        ("locked_block", {}),
    ],
)
def test_a_meeting_is_unlocked_when_the_work_is_marked_as_failed(
    deployment: Deployment,
    dingtalk: Sandbox,
    meeting: str,
    tmp_path: Path,
    dag_id: str,
    others: dict[str, str],
) -> None:
    section = Section(deployment, meeting, tmp_path, dag_id)
    pid = section.working()
    assert not dingtalk.join(meeting, "latecomer")

    section.run.mark("work", "failed")
    end_of(pid)
    assert section.run.end() == "failed"
    states = section.run.states()
    assert (others | {"work": "failed"}).items() <= states.items()
    wait_for(lambda: not dingtalk.conference(meeting).locked, "unlocked meeting")
    assert calls_about(dingtalk, meeting) == [("lock", 200), ("unlock", 200)]


def test_airflow_retries_a_throttled_task_when_dingtalk_said(
    deployment: Deployment, dingtalk: Sandbox, meeting: str
) -> None:
    dingtalk.fail(Fault(call="lock", code=THROTTLED, headers={"Retry-After": "15"}, times=1))
    run = deployment.run("retried_lock", conference_id=meeting)

    run.wait_for(lambda: run.states() == {"lock": "up_for_retry"}, "task that is up for retry")
    assert run.end() == "success"
    assert [task["try_number"] for task in run.tasks()] == [2]
    assert calls_about(dingtalk, meeting) == [("lock", 403), ("lock", 200)]
    assert 15 <= waited(dingtalk, meeting) < 60


def test_no_secret_is_left_anywhere(
    deployment: Deployment, dingtalk: Sandbox, meeting: str, tmp_path: Path
) -> None:
    """The last test: it looks through what all the others have left."""
    section = Section(deployment, meeting, tmp_path)
    section.finish()
    assert section.run.end() == "success"

    left = {"the database": deployment.postgres.dump().encode()}
    left |= {str(path): path.read_bytes() for path in deployment.home.rglob("*") if path.is_file()}
    assert len(deployment.task_logs()) >= 3
    assert dingtalk.client_id.encode() in left["the database"]  # beside the encrypted secret
    for secret in secrets_of(dingtalk):
        assert [where for where, all_of_it in left.items() if secret.encode() in all_of_it] == []

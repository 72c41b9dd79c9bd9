"""LocalExecutor on PostgreSQL: api-server, scheduler, dag-processor and triggerer, each its own process."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_provider_dingconf.sandbox import Fault, Sandbox
from system.airflow_processes import Component, wait_for
from system.deployments.deployment import SILENCE, Deployment, deployed, leaks, secrets_of

MANY = 60
THROTTLED = "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, dingtalk: Sandbox) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("local-executor")
    settings = {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        **SILENCE,
    }
    with deployed(home, dingtalk, **settings) as running:
        running.start("triggerer", "triggerer", "--skip-serve-logs")
        running.wait_for_dags("locked_section", "notified_section", "section_with_a_deadline")
        yield running


@pytest.fixture
def meeting(dingtalk: Sandbox) -> str:
    """Return a running meeting, and end the faults of the test before."""
    dingtalk.heal()
    return dingtalk.create_conference()


class Section:
    """A run of ``locked_section``, or of another DAG whose work ends when a test says so.

    :param directory: where the work writes its process id, and the test that the work is done.
    """

    def __init__(
        self,
        deployment: Deployment,
        dingtalk: Sandbox,
        meeting: str,
        directory: Path,
        dag_id: str = "locked_section",
        **conf: Any,
    ) -> None:
        self.meeting = meeting
        self._dingtalk = dingtalk
        self._pid, self._done = directory / "pid", directory / "done"
        self.run = deployment.run(dag_id, conference_id=meeting, directory=str(directory), **conf)

    @property
    def is_open(self) -> bool:
        """Whether one can join the meeting."""
        return self._dingtalk.join(self.meeting, "latecomer")

    @property
    def calls(self) -> list[tuple[str, int | None]]:
        """The calls about the meeting, and the status of their responses."""
        return [
            (call.name, call.status) for call in self._dingtalk.calls if call.conference_id == self.meeting
        ]

    def working(self, apart_from: int = 0) -> int:
        """Wait until the work is being done, by another process than this one, and return the process."""

        def pid() -> int:
            found = int(self._pid.read_text()) if self._pid.exists() else 0
            return 0 if found == apart_from else found

        return self.run.wait_for(pid, "work")

    def finish(self) -> None:
        """Say that the work is done."""
        self._done.touch()

    def end(self) -> str:
        """Wait until the run has ended with an unlocked meeting, and return the state it ends in."""
        state = self.run.end()
        wait_for(lambda: self.is_open, "unlocked meeting")
        return state


@pytest.fixture
def begin(deployment: Deployment, dingtalk: Sandbox, meeting: str, tmp_path: Path) -> Callable[..., Section]:
    """Return what starts a run about the meeting."""
    return functools.partial(Section, deployment, dingtalk, meeting, tmp_path)


def send(signum: int, task: int, *, worker: bool = True) -> None:
    """Send a signal to a task, and before that to the worker that watches over it."""
    for pid in (psutil.Process(task).ppid(), task) if worker else (task,):
        os.kill(pid, signum)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended."""
    wait_for(lambda: not psutil.pid_exists(pid), f"end of process {pid}")


@pytest.fixture(scope="module")
def silenced(
    deployment: Deployment, dingtalk: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Section, int]]:
    """Return runs with a process that was killed or frozen, by what it was doing.

    All at once: Airflow takes its time to notice.
    """

    def begin(name: str, dag_id: str) -> Section:
        meeting = dingtalk.create_conference(name)
        if "in the lock" in name:
            dingtalk.fail(Fault(call="lock", path=meeting, delay=60, after=True, times=1))
        return Section(deployment, dingtalk, meeting, tmp_path_factory.mktemp("silenced"), dag_id)

    dag_ids = {
        "killed at work": "locked_section",
        "killed at work with its worker": "locked_section",
        "killed in the lock with its worker": "notified_section",
        "frozen in the lock with its worker": "locked_section",
        "frozen in the block with its worker": "locked_block",
    }
    begun = {name: begin(name, dag_id) for name, dag_id in dag_ids.items()}
    found = {}
    for name, section in begun.items():
        if "in the lock" in name:
            locked = dingtalk.conference(section.meeting)
            section.run.wait_for(lambda locked=locked: locked.locked, "lock whose response is delayed")
            pid = section.run.task("lock_conference")["pid"]
        else:
            pid = section.working()
        send(signal.SIGKILL if "killed" in name else signal.SIGSTOP, pid, worker="worker" in name)
        found[name] = section, pid
    return found


def test_a_task_that_is_marked_as_failed_while_it_locks_leaves_no_lock(
    deployment: Deployment, dingtalk: Sandbox, meeting: str
) -> None:
    """The lock has been made, and the response is on its way, for longer than Airflow takes to end the task."""
    dingtalk.fail(Fault(call="lock", path=meeting, delay=60, after=True))
    run = deployment.run("lock", conference_id=meeting)
    run.wait_for(lambda: dingtalk.conference(meeting).locked, "lock whose response is delayed")

    run.mark("lock", "failed")
    wait_for(lambda: not dingtalk.conference(meeting).locked, "unlocked meeting")
    assert run.end() == "failed"
    assert run.states() == {"lock": "failed"}
    *locks, unlock = [call.name for call in dingtalk.calls if call.conference_id == meeting]
    assert ({*locks}, unlock) == ({"lock"}, "unlock")


@pytest.mark.parametrize("killed", ["killed at work", "killed at work with its worker"])
def test_a_meeting_is_unlocked_when_the_work_is_killed(
    silenced: dict[str, tuple[Section, int]], killed: str
) -> None:
    section, _ = silenced[killed]
    assert section.end() == "failed", "the work was not done"
    assert section.calls == [("lock", 200), ("unlock", 200)]


def test_the_notifier_unlocks_after_a_lock_that_lost_its_worker_at_its_last_try(
    silenced: dict[str, tuple[Section, int]],
) -> None:
    section, _ = silenced["killed in the lock with its worker"]
    assert section.end() == "failed"
    states = section.run.states()
    assert states["lock_conference"] == "failed"
    assert states["unlock_conference"] in {"upstream_failed", "skipped"}


@pytest.mark.parametrize(
    "doing", ["frozen in the lock with its worker", "frozen in the block with its worker"]
)
def test_a_try_that_thaws_during_its_retry_rolls_nothing_back(
    silenced: dict[str, tuple[Section, int]], doing: str
) -> None:
    section, frozen = silenced[doing]
    section.working(apart_from=frozen)
    send(signal.SIGCONT, frozen)
    wait_for_end(frozen)
    assert not section.is_open
    assert ("unlock", 200) not in section.calls
    section.finish()
    assert section.end() == "success"


def test_the_notifier_unlocks_when_a_run_reaches_its_timeout(
    begin: Callable[..., Section], deployment: Deployment
) -> None:
    section = begin("notified_section")
    section.working()
    started = "UPDATE dag_run SET start_date = start_date - interval '1 hour' WHERE run_id = %s RETURNING 1"
    assert deployment.postgres.rows(started, section.run.run_id)
    assert section.end() == "failed"
    assert section.run.states()["unlock_conference"] == "skipped"


def test_the_notifier_unlocks_after_an_unlock_that_is_marked_as_failed(
    begin: Callable[..., Section], dingtalk: Sandbox, meeting: str
) -> None:
    dingtalk.fail(Fault(call="unlock", path=meeting, delay=60, times=1))
    section = begin("notified_section")
    section.finish()
    section.run.wait_for(lambda: ("unlock", None) in section.calls, "unlock")
    section.run.mark("unlock_conference", "failed")
    assert section.end() == "failed"
    assert section.run.states()["unlock_conference"] == "failed"


def test_the_notifier_unlocks_when_a_deadline_passes(
    begin: Callable[..., Section], deployment: Deployment
) -> None:
    section = begin("section_with_a_deadline")
    section.working()
    passed = "UPDATE deadline SET deadline_time = now() RETURNING 1"
    assert deployment.postgres.rows(passed) == [(1,)]
    wait_for(lambda: section.is_open, "unlocked meeting")
    assert section.run.state == "running", "a deadline ends no run"
    section.finish()
    assert section.end() == "success"


@pytest.mark.parametrize(
    ("dag_id", "others"),
    [
        ("locked_section", {"lock_conference": "success", "unlock_conference": "success"}),
        ("locked_block", {}),
    ],
)
def test_a_meeting_is_unlocked_when_the_work_is_marked_as_failed(
    begin: Callable[..., Section], dag_id: str, others: dict[str, str]
) -> None:
    section = begin(dag_id)
    pid = section.working()
    assert not section.is_open

    section.run.mark("work", "failed")
    wait_for_end(pid)
    assert section.end() == "failed"
    assert (others | {"work": "failed"}).items() <= section.run.states().items()
    assert section.calls == [("lock", 200), ("unlock", 200)]


def frozen(deployment: Deployment, *, in_transaction: bool) -> Component:
    """Freeze the scheduler alone, in a transaction that holds runs of DAGs or in none, and return it."""
    scheduler = deployment.components["scheduler"]
    ports = [each.laddr.port for each in psutil.Process(scheduler.pid).net_connections("tcp")]
    held = """
        SELECT EXISTS (SELECT FROM pg_locks lock WHERE lock.pid = session.pid
                       AND lock.relation = 'dag_run'::regclass AND lock.mode = 'RowExclusiveLock')
        FROM pg_stat_activity session WHERE client_port = ANY(%s) AND state <> 'idle'
    """

    def is_frozen() -> bool:
        os.kill(scheduler.pid, signal.SIGSTOP)
        time.sleep(0.1)  # until the database has done what was sent before
        transactions = [holds_runs for (holds_runs,) in deployment.postgres.rows(held, ports)]
        if any(transactions) if in_transaction else not transactions:
            return True
        os.kill(scheduler.pid, signal.SIGCONT)
        return False

    wait_for(is_frozen, "scheduler to freeze", every=0.03)
    return scheduler


@pytest.mark.parametrize(
    "killed",
    [
        "alone",
        pytest.param("alone in a transaction", marks=pytest.mark.slow),
        "with all its processes",
    ],
)
def test_meetings_are_locked_for_the_work_and_unlocked_afterwards_when_the_scheduler_is_killed(
    deployment: Deployment, dingtalk: Sandbox, tmp_path_factory: pytest.TempPathFactory, killed: str
) -> None:
    """If the scheduler was killed alone, its tasks live on until Airflow finds that they are superseded.

    So do the other processes of its executor, for ever. They share its connections to the database: if it was
    in a transaction, that stays open, and the new scheduler passes over the runs that it holds.
    """
    meetings = [dingtalk.create_conference() for _ in range(MANY)]
    one = dingtalk.create_conference()

    def locked() -> int:
        return sum(dingtalk.conference(each).locked for each in meetings)

    dingtalk.heal()
    dingtalk.fail(Fault(call="lock", path=meetings[-1], delay=60, after=True))
    many_in, block_in = (tmp_path_factory.mktemp(name) for name in ("many", "block"))
    many = Section(deployment, dingtalk, "", many_in, "section_of_many", conference_ids=meetings)
    block = Section(deployment, dingtalk, one, block_in, "locked_block")
    old_block = block.working()
    many.run.wait_for(lambda: locked() == MANY, "locks")
    old_lock = many.run.task("lock_conference")["pid"]

    scheduler = frozen(deployment, in_transaction="transaction" in killed)
    if "alone" in killed:
        os.kill(scheduler.pid, signal.SIGKILL)
    else:
        scheduler.kill()
    try:
        silent = """
            UPDATE job SET latest_heartbeat = latest_heartbeat - interval '1 hour'
            WHERE job_type = 'SchedulerJob' AND state = 'running' RETURNING 1
        """
        assert deployment.postgres.rows(silent)
        deployment.start_again("scheduler")
        wait_for_end(old_lock)
        wait_for_end(old_block)
        dingtalk.heal()
        if "transaction" in killed:  # as whoever supervises the scheduler, who had better done so before
            scheduler.kill()
        many.working()
        block.working(apart_from=old_block)
        assert locked() == MANY
        assert dingtalk.conference(one).locked
        many.finish()
        block.finish()
        assert {many.run.end(), block.run.end()} == {"success"}
        assert locked() == 0
        assert not dingtalk.conference(one).locked
        calls = Counter(call.name for call in dingtalk.calls if call.conference_id in meetings)
        print(f"killed {killed}: {dict(calls)} of {MANY} meetings")
    finally:
        scheduler.kill()


def test_airflow_retries_a_throttled_task_when_dingtalk_said(
    deployment: Deployment, dingtalk: Sandbox, meeting: str
) -> None:
    dingtalk.fail(Fault(call="lock", code=THROTTLED, headers={"Retry-After": "15"}, times=1))
    run = deployment.run("retried_lock", conference_id=meeting)

    run.wait_for(lambda: run.states() == {"lock": "up_for_retry"}, "task that is up for retry")
    assert run.end() == "success"
    assert [task["try_number"] for task in run.tasks()] == [2]
    first, second = (call for call in dingtalk.calls if call.conference_id == meeting)
    assert [(call.name, call.status) for call in (first, second)] == [("lock", 403), ("lock", 200)]
    assert 15 <= second.time - first.time < 60


def test_no_secret_is_left_anywhere(
    begin: Callable[..., Section], deployment: Deployment, dingtalk: Sandbox
) -> None:
    """The last test: it looks through what all the others have left."""
    section = begin()
    section.finish()
    assert section.end() == "success"
    assert section.calls == [("lock", 200), ("unlock", 200)]

    left = deployment.remains()
    assert len(deployment.task_logs()) >= 3
    assert dingtalk.client_id.encode() in left["the database"]  # beside the encrypted secret
    assert not leaks(secrets_of(dingtalk), left)

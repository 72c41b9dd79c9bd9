"""CeleryExecutor on PostgreSQL and Redis, with two workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_processes import PATIENCE, wait_for
from system.deployments.deployment import SILENCE, Deployment, deployed
from system.deployments.servers import running_redis

WORKERS = ("worker-1", "worker-2")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, dingtalk: Sandbox) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("celery-executor")
    with running_redis(home) as redis_url:
        settings = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": redis_url,
            "AIRFLOW__CELERY__RESULT_BACKEND": redis_url,
            "AIRFLOW__CELERY__SYNC_PARALLELISM": "1",
            "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
            # Two workers on one host: this names each by its user.
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "getpass.getuser",
            # A killed worker takes along what it was about to begin. No more is queued than can begin soon.
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "2",
            **SILENCE,
        }
        with deployed(home, dingtalk, **settings) as running:
            for name in WORKERS:
                running.start(
                    name,
                    *("celery", "worker", "--concurrency", "3", "--celery-hostname", f"{name}@localhost"),
                    *("--pid", str(home / f"{name}.pid"), "--skip-serve-logs"),
                    *("--without-gossip", "--without-mingle"),
                    LOGNAME=name,
                )
            for name in WORKERS:
                running.components[name].wait_for_line(" ready.")
            running.wait_for_dags("many_sections")
            yield running


@pytest.mark.parametrize("sections", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_no_section_leaves_its_meeting_locked_when_one_worker_after_the_other_is_killed(
    deployment: Deployment, dingtalk: Sandbox, sections: int
) -> None:
    meetings = [dingtalk.create_conference() for _ in range(sections)]
    dingtalk.clear()
    run = deployment.run("many_sections", conference_ids=meetings)
    for number, name in enumerate(WORKERS, 1):
        wait_for(lambda number=number: len(dingtalk.calls_of("lock")) >= number * sections // 3, "locks")
        deployment.kill(name)
        (deployment.home / f"{name}.pid").unlink(missing_ok=True)
        deployment.start_again(name)
    run.end(seconds=5 * PATIENCE)
    assert {meeting for meeting in meetings if dingtalk.conference(meeting).locked} == set()
    assert {call.conference_id for call in dingtalk.calls_of("lock")} == {*meetings}
    assert {task["hostname"] for task in run.tasks() if task["pid"]} == {*WORKERS}
    calls = Counter(call.name for call in dingtalk.calls)
    assert calls["token"] <= 1 + len(WORKERS), "a worker may be killed while it fetches the token"
    print(calls, Counter((task["task_id"], task["state"]) for task in run.tasks()))

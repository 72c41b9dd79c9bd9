"""``make bench``: what the provider costs, as ratios.

Both sides of a ratio are measured in one run, alternately, because a busy machine then slows both. The sandbox
on this machine responds at once, which makes the provider's own share look largest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from measuring import Row, calls_of, connected, report, seconds

import airflow_provider_dingconf
from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER

IMPORT_ROUNDS = 9
LOCK_ROUNDS = 1500
TASK_ROUNDS = 300
LOCKS = 100
MEETING = "sandbox-open"
LOCK = f"/v1.0/conference/videoConferences/{MEETING}/lock"
MUTE = f"/v1.0/conference/videoConferences/{MEETING}/allMembers/mute"
MUTED = {"action": "mute", "forceMute": True}
TOKEN = "/v1.0/oauth2/accessToken"
IMPORTS = """
from time import process_time as now
began = now()
from airflow.sdk import BaseOperator
base = now()
import airflow_provider_dingconf.operators
print(now() - began, base - began)
"""


def import_seconds() -> tuple[float, float]:
    """Return the processor's seconds to import the operators, and ``BaseOperator`` alone, in one new process.

    From one process to the next, ``BaseOperator`` alone varies by far more than what is to be measured.
    """
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    both, base = map(float, done.stdout.split())
    return both, base


def medians(*sides: Callable[[], Any], rounds: int) -> list[float]:
    """Return the median milliseconds of each work, done alternately; the first round does not count."""
    measured = [[1000 * seconds(work) for work in sides] for _ in range(rounds + 1)]
    return [median(times) for times in zip(*measured[1:], strict=True)]


def credentials() -> dict[str, str]:
    """Return the body of the call that fetches a token."""
    connection = json.loads(os.environ["AIRFLOW_CONN_DINGTALK_DEFAULT"])
    return {"appKey": connection["login"], "appSecret": connection["password"]}


def lock_in_a_new_hook() -> None:
    """Lock a meeting as each task does."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook = DingTalkConferenceHook()
    hook.lock_conference(MEETING)
    hook.close()


def sdk_lock(url: str, token: str) -> Callable[[], Any]:
    """Return the same call, made with DingTalk's official SDK."""
    from alibabacloud_dingtalk.conference_1_0 import models
    from alibabacloud_dingtalk.conference_1_0.client import Client
    from alibabacloud_tea_openapi.models import Config
    from alibabacloud_tea_util.models import RuntimeOptions

    client = Client(Config(protocol="http", endpoint=url.removeprefix("http://")))
    request = models.LockConferenceRequest(action="lock")
    return lambda: client.lock_conference_with_options(
        MEETING, request, models.LockConferenceHeaders(x_acs_dingtalk_access_token=token), RuntimeOptions()
    )


def section() -> None:
    """Create, lock, unlock and close a meeting."""
    from airflow.sdk import DAG

    from airflow_provider_dingconf.operators import conference

    with DAG("bench", schedule=None), conference("Bench", "sandbox", lock=True) as tasks:
        pass
    xcom = tasks.create.execute({})
    for task in (tasks.lock, tasks.unlock, tasks.close):
        task.conference_id = xcom  # as Airflow resolves it
        task.execute({})


def any_call() -> Callable[[], Any]:
    """Return the work of a task that makes a call with ``DingTalkOperator``."""
    from airflow_provider_dingconf.operators import DingTalkOperator

    task = DingTalkOperator(task_id="any_call", method="POST", path=MUTE, json=MUTED)
    return lambda: task.execute({})


def any_call_by_http() -> Callable[[], Any]:
    """Return the same with the HTTP provider's operator: a task for the token, and one for the call."""
    from airflow.providers.http.operators.http import HttpOperator

    as_json = {"headers": {"Content-Type": "application/json"}, "response_filter": lambda got: got.json()}
    token = HttpOperator(task_id="token", endpoint=TOKEN, data=json.dumps(credentials()), **as_json)
    call = HttpOperator(task_id="call", endpoint=MUTE, data=json.dumps(MUTED), **as_json)

    def both() -> None:
        call.headers = as_json["headers"] | {TOKEN_HEADER: token.execute({})["accessToken"]}
        call.execute({})

    return both


def frames_of(work: Callable[[], Any]) -> int:
    """Return how often some work enters or resumes a function of the package, in any thread."""
    package = str(Path(airflow_provider_dingconf.__file__).parent)
    entered = []

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            entered.append(frame.f_code)

    work()
    threading.setprofile_all_threads(count)
    try:
        work()
    finally:
        threading.setprofile_all_threads(None)
    return len(entered)


def rows() -> Iterator[Row]:
    """Measure, and yield the rows."""
    with connected() as url:
        both, base = min(import_seconds() for _ in range(IMPORT_ROUNDS))
        yield Row("import: these operators / BaseOperator", both, base, "s", 1.03)

        import requests

        from airflow_provider_dingconf.hooks import DingTalkConferenceHook
        from airflow_provider_dingconf.operators import LockConferenceOperator

        hook = DingTalkConferenceHook()

        def lock() -> None:
            hook.lock_conference(MEETING)

        yield Row("API calls / locks, one hook", calls_of(url, lock, LOCKS), LOCKS, "calls", 1.01)
        yield Row("API calls of a section with its own meeting / 4", calls_of(url, section), 4, "calls", 1.0)

        token = hook.call("POST", TOKEN, json=credentials())["accessToken"]
        session = requests.Session()

        def post(session: requests.Session) -> None:
            session.post(f"{url}{LOCK}", json={"action": "lock"}, headers={TOKEN_HEADER: token})

        def post_in_a_new_session() -> None:
            with requests.Session() as session:
                post(session)

        bare, ours, sdk = medians(lambda: post(session), lock, sdk_lock(url, token), rounds=LOCK_ROUNDS)
        yield Row("lock: lock_conference / a bare post of requests", ours, bare, "ms", 0.9)
        yield Row("lock: lock_conference / the official SDK", ours, sdk, "ms", 1.0)
        new = medians(lock_in_a_new_hook, post_in_a_new_session, rounds=TASK_ROUNDS)
        yield Row("new hook, lock, close / session of requests", *new, "ms", 2.1)
        if sys.version_info >= (3, 12):
            task = LockConferenceOperator(task_id="lock", conference_id=MEETING)
            yield Row("frames of this package: a lock / goal", frames_of(lock), 45, "calls", 1.0)
            yield Row(
                "frames: a lock task's execute / goal", frames_of(lambda: task.execute({})), 90, "calls", 1.0
            )

        os.environ["AIRFLOW_CONN_HTTP_DEFAULT"] = url
        sides = any_call(), any_call_by_http()
        calls = [calls_of(url, side, LOCKS) for side in sides]
        yield Row("API calls: DingTalkOperator / HttpOperator", *calls, "calls", 0.5)
        yield Row(
            "any call: DingTalkOperator / HttpOperator", *medians(*sides, rounds=TASK_ROUNDS), "ms", 1.0
        )


if __name__ == "__main__":
    print(f"{'':<52}{'one':>9}{'other':>9} {'':<6}{'ratio':>7}  goal")
    report(rows())
    print(
        f"\nImports: seconds of the processor; both sides in one new process, the quickest of {IMPORT_ROUNDS}.\n"
        f"Locks: with a warm token, median of {LOCK_ROUNDS}. lock_conference logs its line into a file, as in a\n"
        "task; the others log nothing.\n"
        f"Any call: the task's execute, with HttpOperator the one for the token too, median of {TASK_ROUNDS}."
    )

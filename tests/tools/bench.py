"""``make bench``: what the provider costs, as ratios.

Both sides of a ratio are measured in one run, in turn, so that a busy machine slows both. It measures no
DingTalk: the sandbox on this machine answers at once, which makes the provider's own share look largest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from demo import ask, environment, sandbox

import airflow_provider_dingconf
from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

BASE_OPERATOR = "from airflow.sdk import BaseOperator"
IMPORTS = {
    "these operators": "import airflow_provider_dingconf.operators",
    "the HTTP provider's operator": "from airflow.providers.http.operators.http import HttpOperator",
}
IMPORT_ROUNDS = 9
CALL_ROUNDS = 1500
NEW_ROUNDS = 300
TASK_ROUNDS = 300
LOCKS = 100
MEETING = "sandbox-open"
MUTE = f"/v1.0/conference/videoConferences/{MEETING}/allMembers/mute"
MUTED = {"action": "mute", "forceMute": True}


def import_seconds(statement: str) -> tuple[float, float]:
    """Return how long ``BaseOperator`` and then an import on top of it take, in seconds of the processor.

    Both in one fresh process: from one process to the next, ``BaseOperator`` alone varies by far more than
    what is to be measured.
    """
    program = (
        f"from time import process_time as now; t = [now()]\n{BASE_OPERATOR}\nt += [now()]\n{statement}\n"
        "print(t[1] - t[0], now() - t[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    base, more = map(float, done.stdout.split())
    return base, base + more


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of what each side measures, after one round that does not count."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, measure in sides.items():
            measured[name].append(measure())
    return {name: median(values[1:]) for name, values in measured.items()}


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Return what measures how long a call takes, in milliseconds."""

    def measure() -> float:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1000

    return measure


def log_as_a_task_does(log: Path) -> None:
    """Send the logs where Airflow's task runner sends them: as JSON, into a file."""
    from airflow.sdk.log import configure_logging

    configure_logging(json_output=True, output=log.open("wb"), sending_to_supervisor=True)
    sys.excepthook = sys.__excepthook__  # an error of this program is for the screen


def bare_call(url: str, token: str) -> Callable[[], Any]:
    """Return the same call, made with a session of requests and nothing else."""
    import requests

    from airflow_provider_dingconf.dingtalk.calls import lock_call
    from airflow_provider_dingconf.dingtalk.conferences import check_reference

    session, headers = (
        requests.Session(),
        dict(lock_call(check_reference(MEETING), "lock").request(token).headers),
    )
    target = f"{url}/v1.0/conference/videoConferences/{MEETING}/lock"
    return lambda: session.post(target, json={"action": "lock"}, headers=headers)


def new_hook() -> None:
    """Lock a meeting in a new hook, as each task does."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook = DingTalkConferenceHook()
    hook.lock_conference(MEETING)
    hook.close()


def new_session(url: str, token: str) -> Callable[[], Any]:
    """Return the same call in a new session of requests."""
    import requests

    target = f"{url}/v1.0/conference/videoConferences/{MEETING}/lock"

    def lock() -> None:
        with requests.Session() as session:
            session.post(target, json={"action": "lock"}, headers={TOKEN_HEADER: token})

    return lock


def frames_of(call: Callable[[], Any]) -> int:
    """Return how often a call enters or resumes a function of the package, in any thread."""
    package = str(Path(airflow_provider_dingconf.__file__).parent)
    entered = []

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            entered.append(frame.f_code)

    call()
    threading.setprofile_all_threads(count)
    try:
        call()
    finally:
        threading.setprofile_all_threads(None)
    return len(entered)


def sdk_call(url: str, token: str) -> Callable[[], Any]:
    """Return the same call, made with DingTalk's official SDK."""
    from alibabacloud_dingtalk.conference_1_0 import models
    from alibabacloud_dingtalk.conference_1_0.client import Client
    from alibabacloud_tea_openapi.models import Config
    from alibabacloud_tea_util.models import RuntimeOptions

    client = Client(Config(protocol="http", endpoint=url.removeprefix("http://")))
    request = models.LockConferenceRequest(action="lock")
    return lambda: client.lock_conference_with_options(
        MEETING,
        request,
        models.LockConferenceHeaders(x_acs_dingtalk_access_token=token),
        RuntimeOptions(),
    )


def calls_for_locks(url: str) -> int:
    """Return how many calls the sandbox got, when its first ones were the locks of one hook."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    hook = DingTalkConferenceHook()
    for _ in range(LOCKS):
        hook.lock_conference(MEETING)
    return len(ask(url, "calls"))


def any_call() -> Callable[[], Any]:
    """Return a task that makes a call, as ``DingTalkOperator``."""
    from airflow_provider_dingconf.operators import DingTalkOperator

    task = DingTalkOperator(task_id="any_call", method="POST", path=MUTE, json=MUTED)
    return lambda: task.execute({})


def the_same_by_http() -> Callable[[], Any]:
    """Return the same call by the HTTP provider's operator: a task for the token, and one for the call."""
    from airflow.providers.http.operators.http import HttpOperator

    as_json = {"headers": {"Content-Type": "application/json"}, "response_filter": lambda got: got.json()}
    token = HttpOperator(
        task_id="token", endpoint="/v1.0/oauth2/accessToken", data=json.dumps(credentials()), **as_json
    )
    call = HttpOperator(task_id="call", endpoint=MUTE, data=json.dumps(MUTED), **as_json)

    def both() -> None:
        header = {"x-acs-dingtalk-access-token": token.execute({})["accessToken"]}
        call.headers = {**as_json["headers"], **header}
        call.execute({})

    return both


def calls_of(url: str, work: Callable[[], Any]) -> int:
    """Return how many calls the sandbox got when some work was done so many times as there are locks."""
    before = len(ask(url, "calls"))
    for _ in range(LOCKS):
        work()
    return len(ask(url, "calls")) - before


def calls_for_a_section(url: str) -> int:
    """Return how many calls the sandbox got for a section that creates, locks, unlocks and closes a meeting."""
    from airflow.sdk import DAG

    from airflow_provider_dingconf.operators import conference

    before = len(ask(url, "calls"))
    with DAG("bench", schedule=None), conference("Bench", "sandbox", lock=True) as section:
        pass
    xcom = section.create.execute({})
    for task in (section.lock, section.unlock, section.close):
        task.conference_id = xcom  # as Airflow resolves it
        task.execute({})
    return len(ask(url, "calls")) - before


def row(what: str, one: float, other: float, unit: str, goal: float | None = None) -> None:
    """Print one row of the table."""
    ratio = one / other
    aim = "-" if goal is None else f"at most {goal:.4g}"
    met = "" if goal is None else "met" if round(ratio, 3) <= goal else "MISSED"
    print(f"{what:<52}{one:>9.4g}{other:>9.4g} {unit:<6}{ratio:>7.3f}  {aim:<14}{met}".rstrip(), flush=True)


def main() -> None:
    """Measure, and print the table."""
    with (
        tempfile.TemporaryDirectory(prefix="dingconf-bench-") as home,
        sandbox(Path(home, "sandbox.log"), "--quiet") as url,
    ):
        os.environ.clear()
        os.environ.update(environment(Path(home), url))
        tempfile.tempdir = home
        print(f"{'':<52}{'one':>9}{'other':>9} {'':<6}{'ratio':>7}  goal")

        for name, statement in IMPORTS.items():
            rounds = [import_seconds(statement) for _ in range(IMPORT_ROUNDS)]
            base, both = min(rounds, key=lambda one: one[1])
            row(
                f"import: {name} / BaseOperator", both, base, "s", 1.03 if name == "these operators" else None
            )

        from airflow_provider_dingconf.hooks import DingTalkConferenceHook
        from airflow_provider_dingconf.operators import LockConferenceOperator

        log_as_a_task_does(Path(home, "task.log"))
        row("API calls / locks, one hook", calls_for_locks(url), LOCKS, "calls", 1.01)
        row("API calls of a section with its own meeting / 4", calls_for_a_section(url), 4, "calls", 1.0)
        hook = DingTalkConferenceHook()
        fetched = hook.call("POST", "/v1.0/oauth2/accessToken", json=credentials())["accessToken"]
        calls = in_turn(
            {
                "bare": timed(bare_call(url, fetched)),
                "hook": timed(lambda: hook.lock_conference(MEETING)),
                "sdk": timed(sdk_call(url, fetched)),
            },
            CALL_ROUNDS,
        )
        row("lock: lock_conference / a bare post of requests", calls["hook"], calls["bare"], "ms", 0.9)
        row("lock: lock_conference / the official SDK", calls["hook"], calls["sdk"], "ms", 1.0)
        new = in_turn({"hook": timed(new_hook), "bare": timed(new_session(url, fetched))}, NEW_ROUNDS)
        row("new hook, lock, close / session of requests", new["hook"], new["bare"], "ms", 2.1)
        if sys.version_info >= (3, 12):
            operator = LockConferenceOperator(task_id="lock", conference_id=MEETING)
            row(
                "frames of this package: a lock / goal",
                frames_of(lambda: hook.lock_conference(MEETING)),
                45,
                "calls",
                1.0,
            )
            row(
                "frames: a lock task's execute / goal",
                frames_of(lambda: operator.execute({})),
                90,
                "calls",
                1.0,
            )

        os.environ["AIRFLOW_CONN_HTTP_DEFAULT"] = url
        ours, theirs = any_call(), the_same_by_http()
        row(
            "API calls: DingTalkOperator / HttpOperator",
            calls_of(url, ours),
            calls_of(url, theirs),
            "calls",
            0.5,
        )
        tasks = in_turn({"ours": timed(ours), "theirs": timed(theirs)}, TASK_ROUNDS)
        row("any call: DingTalkOperator / HttpOperator", tasks["ours"], tasks["theirs"], "ms", 1.0)
    print(
        f"\nImports: seconds of the processor; both sides in one fresh process, the quickest of {IMPORT_ROUNDS}.\n"
        f"Locks: with a warm token, median of {CALL_ROUNDS}. lock_conference logs its line into a file, as in a\n"
        "task; the others log nothing.\n"
        f"Any call: the task's execute, with HttpOperator the one for the token too, median of {TASK_ROUNDS}."
    )


def credentials() -> dict[str, str]:
    """Return the body of the call that fetches a token for the other sides."""
    connection = json.loads(os.environ["AIRFLOW_CONN_DINGTALK_DEFAULT"])
    return {"appKey": connection["login"], "appSecret": connection["password"]}


if __name__ == "__main__":
    main()

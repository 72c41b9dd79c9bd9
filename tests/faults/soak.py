"""Many calls, of which one in five meets a fault: a plan that can be replayed, and what came of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_dingconf.sandbox import Sandbox

from . import fault_proxy
from .fault_proxy import FAULTS, Fault, FaultProxy, Route, refusal

SHARE = 0.2
WARM_UP = 2
"""Calls that the client makes before."""

TOKEN_REFUSED = (refusal(401, "any"), refusal(400, "InvalidAuthentication"))
PASSING = (
    *(fault for fault in fault_proxy.HANGING_UP.values() if fault.reads),
    *fault_proxy.IN_THE_HEADERS.values(),
    *fault_proxy.NO_HTTP.values(),
    *fault_proxy.WRONG_BODIES.values(),
    *fault_proxy.NOT_CONFIRMED.values(),
    *fault_proxy.GATEWAY.values(),
    FAULTS["gzip bomb"],
    FAULTS["body of 1 MiB and a byte"],
    refusal(500, "systemError"),
    refusal(403, "Forbidden.AccessDenied.QpsLimitForApi"),
    refusal(429, "systemBusy"),
    refusal(429, "systemBusy", Retry_After="0"),
    refusal(429, "systemBusy", Retry_After="1"),
    refusal(503, "serviceBusy", Retry_After="-1"),
    refusal(400, "90002", old=True),
)
"""Faults after which the same call succeeds."""


def faults_of_a_call(dice: random.Random) -> Iterator[Fault | None]:
    """Yield the faults that a call meets before it succeeds, and None: one call in five meets one."""
    refused = dice.random() < SHARE / 5
    if refused or dice.random() < SHARE * 4 / 5:
        yield dice.choice(TOKEN_REFUSED if refused else PASSING)
        while dice.random() < SHARE:
            yield dice.choice(PASSING)
    yield None


def faults_of_tokens(dice: random.Random) -> Iterator[Fault | None]:
    """Yield what each token call meets, but for the first, before the soak begins."""
    yield None
    while True:
        yield dice.choice(PASSING) if dice.random() < SHARE else None


class Plan:
    """The calls of each meeting and the faults that they meet, the same for the same seed.

    :param calls: how many in all.
    :param workers: half of them threads, half coroutines, each with another meeting.
    """

    def __init__(self, seed: int, calls: int, workers: int) -> None:
        self.seed = seed
        self.actions: dict[str, list[str]] = {}
        self.faults: dict[str, list[Fault | None]] = {}
        for number in range(workers):
            meeting, dice = f"soak-{seed}-{number}", random.Random(f"{seed} {number}")  # noqa: S311 - to be replayed
            self.actions[meeting] = [dice.choice(["lock", "unlock"]) for _ in range(calls // workers)]
            self.faults[meeting] = [fault for _ in self.actions[meeting] for fault in faults_of_a_call(dice)]
        self.tokens = faults_of_tokens(random.Random(seed))  # noqa: S311 - to be replayed


@dataclass
class Soaked:
    """What came of a plan.

    :param report: what the client counted of its calls, and what they cost.
    :param route: what the calls went through, with the faults.
    :param sandbox: the sandbox behind.
    """

    report: dict[str, Any]
    route: Route
    sandbox: Sandbox

    @property
    def fewest_calls(self) -> int:
        """How many calls there must be: what was asked for, once more after each fault, and one for a token."""
        return self.report["done"] + WARM_UP + len(self.route.hit) + 1


@contextmanager
def soaked(plan: Plan, temporary: Path) -> Iterator[Soaked]:
    """Let another process carry out a plan.

    :param temporary: a directory for the files that share the access token.
    """
    with Sandbox() as sandbox, FaultProxy(sandbox) as layer:
        for meeting in plan.actions:
            sandbox.create_conference(conference_id=meeting)
        route = layer.route({**plan.faults, "token": plan.tokens})
        python_path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {
            "PYTHONPATH": os.pathsep.join(python_path),
            "TMPDIR": str(temporary),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "AIRFLOW_CONN_DINGTALK_DEFAULT": sandbox.connection_json(host=route.url, extra={"timeout": 60}),
        }
        client = subprocess.run(
            [sys.executable, Path(__file__).with_name("soak_client.py")],
            input=json.dumps({"work": plan.actions, "warm": sandbox.create_conference()}),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )
        if client.returncode:
            raise RuntimeError(f"SOAK_SEED={plan.seed}\n{client.stderr[-3000:]}")
        yield Soaked(json.loads(client.stdout.splitlines()[-1]), route, sandbox)

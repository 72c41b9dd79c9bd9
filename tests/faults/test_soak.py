"""10,000 calls, of which one in five meets a fault: what was asked is done, with no call too many, at no cost."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_dingconf.sandbox import Sandbox

from . import fault_proxy
from .fault_proxy import FAULTS, Fault, FaultProxy, Route, refusal

CALLS = 10_000
WORKERS = 100
SHARE = 0.2
SEED = int(os.environ.get("SOAK_SEED", "20261124"))
MIB = 2**20

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


def faults_of_a_call(dice: random.Random) -> Iterator[Fault]:
    """Yield the faults that a call meets before it is let through: one call in five meets one."""
    if dice.random() < SHARE / 5:
        yield dice.choice(TOKEN_REFUSED)
    elif dice.random() < SHARE * 4 / 5:
        yield dice.choice(PASSING)
    else:
        return
    while dice.random() < SHARE:
        yield dice.choice(PASSING)


def faults_of_tokens(dice: random.Random) -> Iterator[Fault | None]:
    """Yield what each token call meets, but for the first, with which the soak has not begun."""
    yield None
    while True:
        yield dice.choice(PASSING) if dice.random() < SHARE else None


class Plan:
    """The calls of each meeting and the faults that they meet, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.actions: dict[str, list[str]] = {}
        self.faults: dict[str, list[Fault | None]] = {}
        for number in range(WORKERS):
            meeting, dice = f"soak-{seed}-{number}", random.Random(f"{seed} {number}")  # noqa: S311
            self.actions[meeting] = [dice.choice(["lock", "unlock"]) for _ in range(CALLS // WORKERS)]
            self.faults[meeting] = [
                fault for _ in self.actions[meeting] for fault in (*faults_of_a_call(dice), None)
            ]
        self.tokens = faults_of_tokens(random.Random(seed))  # noqa: S311


@pytest.fixture(scope="module")
def plan() -> Plan:
    print(f"to replay: SOAK_SEED={SEED}")
    return Plan(SEED)


@pytest.fixture(scope="module")
def soaked(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict, Route, Sandbox]]:
    """Return what the client says, the route that it took, and the sandbox in the end."""
    with Sandbox() as sandbox, FaultProxy(sandbox) as layer:
        for meeting in plan.actions:
            sandbox.create_conference(conference_id=meeting)
        route = layer.route({**plan.faults, "token": plan.tokens})
        package = Path(__file__).parents[2]
        client = subprocess.run(
            [sys.executable, Path(__file__).with_name("soak_client.py")],
            input=json.dumps(
                {
                    "work": plan.actions,
                    "threads": list(itertools.islice(plan.actions, WORKERS // 2)),
                    "warm": sandbox.create_conference(),
                }
            ),
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]),
                "TMPDIR": str(tmp_path_factory.mktemp("soak")),
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
                "AIRFLOW_CONN_DINGTALK_DEFAULT": sandbox.connection_json(host=route.url),
            },
        )
        assert client.returncode == 0, f"SOAK_SEED={SEED}\n{client.stderr[-3000:]}"
        yield json.loads(client.stdout.splitlines()[-1]), route, sandbox


def test_every_call_ends_as_asked(plan: Plan, soaked: tuple[dict, Route, Sandbox]) -> None:
    said, _, sandbox = soaked
    assert said["failed"] == []
    assert said["done"] == CALLS
    wrong = [
        meeting
        for meeting, actions in plan.actions.items()
        if sandbox.conference(meeting).locked != (actions[-1] == "lock")
    ]
    assert not wrong


def test_one_call_in_five_met_a_fault(plan: Plan, soaked: tuple[dict, Route, Sandbox]) -> None:
    _, route, _ = soaked
    planned = Counter(fault for faults in plan.faults.values() for fault in faults if fault)
    hit = Counter(fault for kind, fault in route.hit if kind != "token")
    assert hit == planned
    assert CALLS * SHARE <= hit.total() <= 1.6 * CALLS * SHARE
    assert len(hit) == len({*PASSING, *TOKEN_REFUSED})


def test_no_call_was_made_too_many(plan: Plan, soaked: tuple[dict, Route, Sandbox]) -> None:
    said, route, sandbox = soaked
    hit = Counter("token call" if kind == "token" else fault in TOKEN_REFUSED for kind, fault in route.hit)
    passing, refused, on_tokens = hit[False], hit[True], hit["token call"]
    warm = 2
    assert route.count("lock", "unlock") == CALLS + warm + passing + refused
    assert route.count("other") == 0
    # A refused token costs the purchase of another one, which calls that come together share.
    assert route.count("token") <= 1 + refused + on_tokens
    assert said["attempts"] == CALLS + passing + on_tokens
    lost = sum(fault.takes_effect for kind, fault in route.hit if kind != "token")
    assert len(sandbox.calls_of("lock", "unlock")) == CALLS + warm + lost
    for meeting, actions in plan.actions.items():
        asked = [request.kind for request in route.requests if request.conference_id == meeting]
        met = iter(plan.faults[meeting])
        expected = [
            action
            for action in actions
            for _ in itertools.chain([None], itertools.takewhile(lambda fault: fault is not None, met))
        ]
        assert asked == expected


def test_memory_descriptors_and_threads_stay_flat(soaked: tuple[dict, Route, Sandbox]) -> None:
    said, route, _ = soaked
    first, last = said["costs"][0], said["costs"][-1]
    assert last["bytes"] - first["bytes"] < 48 * MIB
    assert max(cost["descriptors"] for cost in said["costs"]) <= said["before"]["descriptors"] + 2 * WORKERS
    assert said["after"]["descriptors"] == said["before"]["descriptors"]
    assert said["after"]["threads"] <= said["before"]["threads"] + 1
    assert route.open == 0

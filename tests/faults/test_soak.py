"""10,000 calls, of which one in five meets a fault: all succeed, with no call too many, and nothing grows."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from .rows import check_hung_up
from .soak import PASSING, SHARE, TOKEN_REFUSED, WARM_UP, Plan, Soaked, soaked

CALLS = 10_000
WORKERS = 200
SEED = int(os.environ.get("SOAK_SEED", "20261124"))
MIB = 2**20


@pytest.fixture(scope="module")
def plan() -> Plan:
    print(f"to replay: SOAK_SEED={SEED}")
    return Plan(SEED, CALLS, WORKERS)


@pytest.fixture(scope="module")
def soak(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soaked]:
    with soaked(plan, tmp_path_factory.mktemp("soak")) as done:
        yield done


def test_every_call_ends_as_asked(plan: Plan, soak: Soaked) -> None:
    report, sandbox = soak.report, soak.sandbox
    assert report["failed"] == []
    assert report["done"] == CALLS
    wrong = [
        meeting
        for meeting, actions in plan.actions.items()
        if sandbox.conference(meeting).locked != (actions[-1] == "lock")
    ]
    assert not wrong
    hit = Counter(fault for kind, fault in soak.route.hit if kind != "token")
    assert hit == Counter(fault for faults in plan.faults.values() for fault in faults if fault)
    assert CALLS * SHARE <= hit.total() <= 1.6 * CALLS * SHARE, "not one call in five met a fault"
    assert len(hit) == len({*PASSING, *TOKEN_REFUSED})


def test_no_call_was_made_too_many(plan: Plan, soak: Soaked) -> None:
    report, route, sandbox = soak.report, soak.route, soak.sandbox
    hit = Counter("token call" if kind == "token" else fault in TOKEN_REFUSED for kind, fault in route.hit)
    passing, refused, on_tokens = hit[False], hit[True], hit["token call"]
    assert route.count("lock", "unlock") == CALLS + WARM_UP + passing + refused
    assert route.count("other") == 0
    # A refused token costs the fetch of another one, which calls that come together share.
    assert route.count("token") <= 1 + refused + on_tokens
    assert report["attempts"] == CALLS + passing + on_tokens
    lost = sum(fault.takes_effect for kind, fault in route.hit if kind != "token")
    assert len(sandbox.calls_of("lock", "unlock")) == CALLS + WARM_UP + lost
    for meeting, actions in plan.actions.items():
        asked = [request.kind for request in route.requests if request.conference_id == meeting]
        met = iter(plan.faults[meeting])
        expected = [
            action
            for action in actions
            for _ in itertools.chain([None], itertools.takewhile(lambda fault: fault is not None, met))
        ]
        assert asked == expected


def test_memory_descriptors_and_threads_stay_flat(soak: Soaked) -> None:
    report, route = soak.report, soak.route
    first, last = report["costs"][0], report["costs"][-1]
    assert last["bytes"] - first["bytes"] < 48 * MIB
    assert (
        max(cost["descriptors"] for cost in report["costs"]) <= report["before"]["descriptors"] + 2 * WORKERS
    )
    assert report["after"]["descriptors"] == report["before"]["descriptors"]
    assert report["after"]["threads"] <= report["before"]["threads"] + 1
    check_hung_up(route)

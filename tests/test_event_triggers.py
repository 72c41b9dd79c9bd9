"""``ConferenceEventTrigger`` as Airflow runs it: in the triggerer's own runner, against the sandbox."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_dingconf import triggers
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.sandbox import Sandbox

AIRFLOW = tuple(map(int, airflow_version.split(".")[:2]))
PATIENCE = 30.0
MODULE = "airflow_provider_dingconf.event_triggers"

airflow_3 = pytest.mark.skipif(AIRFLOW < (3, 0), reason="events are for Airflow 3")


@pytest.mark.skipif(AIRFLOW >= (3, 0), reason="Airflow 3 has what it needs")
@pytest.mark.parametrize("name", ["ConferenceEventTrigger", "triggering_conferences"])
def test_an_older_airflow_is_told_which_version_it_needs(name: str) -> None:
    with pytest.raises(ImportError, match=r"needs Airflow 3\.0 or later; this is Airflow 2\.11"):
        getattr(triggers, name)


def test_a_misspelt_trigger_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="ConferenceEventTriger"):
        triggers.ConferenceEventTriger  # noqa: B018


@airflow_3
def test_a_dag_file_with_the_trigger_imports_no_http_library() -> None:
    program = (
        "import sys; import airflow.triggers.base; before = set(sys.modules)\n"
        "from airflow_provider_dingconf.triggers import ConferenceEventTrigger\n"
        "ConferenceEventTrigger(title_pattern='^a')\n"
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    new = set(done.stdout.splitlines()[-1].split())
    assert MODULE in new
    assert not new & {"aiohttp", "cryptography", "requests", "airflow_provider_dingconf.hooks"}


@airflow_3
def test_the_triggerer_makes_the_same_trigger_again() -> None:
    made = triggers.ConferenceEventTrigger(
        dingtalk_conn_id="other", scenes=("conference_created", "conference_closed"), creator_id="u1"
    )
    path, kwargs = made.serialize()
    assert json.loads(json.dumps(kwargs)) == kwargs
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**kwargs)
    assert again.serialize() == made.serialize()
    assert again.filter == made.filter
    assert triggers.ConferenceEventTrigger(scenes="user_join").serialize()[1]["scenes"] == ["user_join"]


@airflow_3
@pytest.mark.parametrize("wrong", [{"scenes": ["conference_create"]}, {"title_pattern": "("}, {"scenes": []}])
def test_a_filter_that_cannot_be_meant_is_found_when_the_dag_is_parsed(wrong: Any) -> None:
    with pytest.raises(InvalidInputError):
        triggers.ConferenceEventTrigger(**wrong)


@airflow_3
def test_an_asset_watches_with_it() -> None:
    from airflow.sdk import Asset, AssetWatcher

    trigger = triggers.ConferenceEventTrigger()
    asset = Asset("meetings", watchers=[AssetWatcher(name="started", trigger=trigger)])
    assert asset.watchers[0].trigger is trigger


# In the triggerer's runner


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(redelivery=1.0) as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, conn: Any) -> None:
    """Shorten the waits, in the same proportions."""
    from airflow_provider_dingconf import event_triggers, stream

    monkeypatch.setattr(stream, "JOIN_SECONDS", 0.1)
    monkeypatch.setattr(stream, "WAIT_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(stream, "QUIET_SECONDS", 0.6)
    monkeypatch.setattr(event_triggers, "CROWD_SECONDS", 0.6)
    monkeypatch.setattr(event_triggers, "SAFE_SECONDS", 0.3)


class Triggerer:
    """The runner of Airflow's triggerer, without the supervisor that stores what it fires.

    :param stores: whether it plays the supervisor's part, and confirms what Airflow 3.3 asks to be confirmed.
    """

    def __init__(self, *, stores: bool = True) -> None:
        from airflow.jobs.triggerer_job_runner import TriggerRunner

        self.runner = TriggerRunner()
        self.fired: list[tuple[int, dict[str, Any]]] = []
        self._ids = iter(range(1, 100))
        self.stores = stores

    def start(self, trigger: Any) -> int:
        """Begin to run a trigger, and return its id."""
        trigger_id = next(self._ids)
        trigger.timeout_after = None
        trigger.trigger_id = trigger_id
        run = self.runner.run_trigger(trigger_id, trigger)
        self.runner.triggers[trigger_id] = {
            "task": asyncio.ensure_future(run),
            "name": str(trigger_id),
            "is_watcher": True,
            "events": 0,
        }
        return trigger_id

    def task(self, trigger_id: int) -> asyncio.Task[None]:
        return self.runner.triggers[trigger_id]["task"]  # type: ignore[return-value]

    def of(self, trigger_id: int) -> list[dict[str, Any]]:
        """Return the payloads that a trigger has fired."""
        return [payload for fired_by, payload in self.fired if fired_by == trigger_id]

    async def keep_storing(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            confirmed = []
            while self.runner.events:
                entry: Any = self.runner.events.popleft()
                trigger_id, event, *rest = (
                    entry if isinstance(entry, tuple) else (entry.trigger_id, entry.event, entry.persist_seq)
                )
                self.fired.append((trigger_id, event.payload))
                confirmed += [seq for seq in rest if seq is not None]
            if confirmed and self.stores:
                self.runner._shared_streams.confirm_persisted(confirmed)

    async def stop(self) -> None:
        for details in self.runner.triggers.values():
            details["task"].cancel()
        for details in self.runner.triggers.values():
            with suppress(asyncio.CancelledError):
                await details["task"]
        if hasattr(self.runner, "_shared_streams"):
            await self.runner._shared_streams.stop_all()


@asynccontextmanager
async def triggering(
    sandbox: Sandbox, *made: Any, stores: bool = True
) -> AsyncIterator[tuple[Triggerer, list[int]]]:
    """Run triggers in a triggerer, from when the sandbox knows of the stream."""
    triggerer = Triggerer(stores=stores)
    ids = [triggerer.start(trigger) for trigger in made]
    storing = asyncio.ensure_future(triggerer.keep_storing())
    try:
        await until(lambda: sandbox.streams)
        yield triggerer, ids
    finally:
        await triggerer.stop()
        storing.cancel()


def drive(steps: Callable[[], Awaitable[object]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), PATIENCE))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def acknowledged(sandbox: Sandbox) -> bool:
    return all(event.acknowledged for event in sandbox.events)


def make(**filters: Any) -> Any:
    return triggers.ConferenceEventTrigger(**filters)


@airflow_3
def test_a_meeting_that_starts_becomes_an_event_that_says_which(sandbox: Sandbox, quick: None) -> None:
    async def steps() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            meeting = sandbox.create_conference("Release 1.0")
            await until(lambda: triggerer.of(only))
            (payload,) = triggerer.of(only)
            assert json.loads(json.dumps(payload)) == payload
            assert (payload["conference_id"], payload["title"]) == (meeting, "Release 1.0")
            assert (payload["scene"], payload["status"]) == ("conference_created", "started")
            assert payload["start_time"].endswith("+00:00")
            await until(lambda: acknowledged(sandbox))

    drive(steps)


@airflow_3
def test_each_watcher_gets_what_it_asked_for_over_one_connection(sandbox: Sandbox, quick: None) -> None:
    async def steps() -> None:
        wanted = [
            make(title_pattern="^Release"),
            make(scenes=["conference_created", "conference_closed"]),
            make(scenes=["user_join"]),
            make(creator_id="nobody"),
        ]
        async with triggering(sandbox, *wanted) as (triggerer, ids):
            release, other = sandbox.create_conference("Release"), sandbox.create_conference("other")
            sandbox.join(release, "somebody")
            sandbox.end(other)
            await until(lambda: acknowledged(sandbox))

            def heard(number: int) -> list[Any]:
                return [
                    (one["scene"], one["conference_id"])
                    for one in triggerer.of(ids[number])
                    if one["conference_id"]
                ]

            assert heard(0) == [("conference_created", release)]
            assert sorted(heard(1)) == sorted(
                [("conference_created", release), ("conference_created", other), ("conference_closed", other)]
            )
            assert heard(2) == [("user_join", release)]
            assert heard(3) == []
            assert len(sandbox.calls_of("connect")) == 1

    drive(steps)


@airflow_3
def test_an_event_is_acknowledged_once_airflow_has_it(sandbox: Sandbox, quick: None) -> None:
    async def steps() -> None:
        async with triggering(sandbox, make(), stores=False) as (triggerer, (only,)):
            sandbox.create_conference()
            await until(lambda: triggerer.of(only))
            if AIRFLOW >= (3, 3):  # it is told when Airflow has stored it, and not before
                await asyncio.sleep(0.5)
                assert not acknowledged(sandbox)
            else:
                began = time.monotonic()
                await until(lambda: acknowledged(sandbox))
                assert time.monotonic() - began > 0.1

    drive(steps)


@airflow_3
def test_what_airflow_did_not_store_starts_its_run_after_a_restart(sandbox: Sandbox, quick: None) -> None:
    async def first() -> None:
        async with triggering(sandbox, make(), stores=False) as (triggerer, (only,)):
            sandbox.create_conference()
            await until(lambda: triggerer.of(only))

    async def second() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            await until(lambda: triggerer.of(only) and acknowledged(sandbox))

    drive(first)
    assert not acknowledged(sandbox)
    drive(second)


@airflow_3
def test_an_event_that_comes_again_fires_nothing_even_after_a_restart(sandbox: Sandbox, quick: None) -> None:
    data = {"openConfModel": {"conferenceId": "c1"}, "changeScene": "conference_created"}

    def push(event_id: str) -> None:
        sandbox.push_event("meeting_status_change", data, event_id=event_id)

    async def first() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            push("e1")
            push("e1")
            await until(lambda: triggerer.of(only) and acknowledged(sandbox))
            push("e1")
            await until(lambda: acknowledged(sandbox))
            assert len(triggerer.of(only)) == 1

    async def second() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            push("e1")
            push("e2")
            await until(lambda: triggerer.of(only) and acknowledged(sandbox))
            assert [one["event_id"] for one in triggerer.of(only)] == ["e2"]

    drive(first)
    drive(second)


@airflow_3
def test_events_that_came_close_together_are_followed_by_a_sweep(sandbox: Sandbox, quick: None) -> None:
    async def steps() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            sandbox.create_conference()
            await asyncio.sleep(1.5)
            assert [one["event_type"] for one in triggerer.of(only)] == ["meeting_status_change"]
            sandbox.create_conference()
            sandbox.create_conference()
            await until(lambda: len(triggerer.of(only)) == 4)
            assert triggerer.of(only)[-1] == {"event_type": "sweep", "conference_id": None}
            await asyncio.sleep(1.5)
            assert len(triggerer.of(only)) == 4

    drive(steps)


@airflow_3
def test_many_events_at_once_over_connections_that_break_each_fire_once(
    sandbox: Sandbox, quick: None
) -> None:
    events = 1500  # more than a watcher's queue holds on Airflow 3.3

    async def steps() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            for number in range(events):
                if number in (events // 3, 2 * events // 3):
                    sandbox.disconnect_streams(politely=number < events // 2)
                sandbox.create_conference(str(number))
            await until(lambda: acknowledged(sandbox))
            titles = [one["title"] for one in triggerer.of(only) if one["conference_id"]]
            assert sorted(titles, key=int) == [*map(str, range(events))]

    drive(steps)


@airflow_3
def test_a_trigger_ends_at_once_when_it_is_cancelled(sandbox: Sandbox, quick: None) -> None:
    async def steps() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            began = time.monotonic()
            triggerer.task(only).cancel()
            with suppress(asyncio.CancelledError):
                await triggerer.task(only)
            assert time.monotonic() - began < 5.0
            await until(lambda: not sandbox.streams)

    drive(steps)


@airflow_3
def test_a_trigger_that_is_cancelled_while_it_fires_leaves_the_stream(sandbox: Sandbox, quick: None) -> None:
    async def steps() -> None:
        trigger = make()
        events = trigger.run()
        following: Any = asyncio.ensure_future(events.__anext__())
        await until(lambda: sandbox.streams)
        sandbox.create_conference()
        await following  # and is now where the runner would be, with the event in its hands
        await trigger.cleanup()
        await until(lambda: not sandbox.streams)

    drive(steps)


@airflow_3
def test_no_secret_is_among_the_arguments_of_a_trigger(sandbox: Sandbox, quick: None) -> None:
    assert sandbox.client_secret not in repr(make())
    assert "secret" not in " ".join(inspect.signature(make).parameters)


# What a task makes of it


def asset_event(payload: Any) -> Any:
    return SimpleNamespace(extra={"from_trigger": True, "payload": payload})


@airflow_3
def test_a_task_gets_the_payloads_of_all_meetings_once_and_no_sweep() -> None:
    one = {"event_id": "e1", "conference_id": "c1"}
    other = {"event_id": "e2", "conference_id": "c1"}
    events = {
        "asset": [asset_event(one), asset_event({"event_type": "sweep", "conference_id": None})],
        "another": [
            asset_event(other),
            asset_event(one),
            SimpleNamespace(extra={}),
            SimpleNamespace(extra=None),
        ],
    }
    assert triggers.triggering_conferences(events) == [one, other]
    assert triggers.triggering_conferences({}) == triggers.triggering_conferences(None) == []

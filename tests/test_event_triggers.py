"""``ConferenceEventTrigger`` as Airflow runs it: in the triggerer's own runner, against the sandbox."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import runpy
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="events are for Airflow 3")

from airflow import __version__ as airflow_version
from conftest import CONN_VARIABLE
from streams import acknowledged, drive, sweep_due, until

from airflow_provider_dingconf import triggers
from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.event_stream import StreamOptions
from airflow_provider_dingconf.client.sweeps import Sweeps
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.sandbox import Sandbox

AIRFLOW = tuple(map(int, airflow_version.split(".")[:2]))
MODULE = "airflow_provider_dingconf.event_triggers"


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


def test_equal_filters_are_one_trigger_in_whichever_order_they_are_written() -> None:
    written = [
        ["conference_created", "conference_closed"],
        ("conference_closed", "conference_created"),
        {"conference_closed", "conference_created"},
    ]
    made = {json.dumps(triggers.ConferenceEventTrigger(scenes=scenes).serialize()) for scenes in written}
    assert len(made) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenes": ["conference_create"]},
        {"scenes": []},
        {"scenes": 1},
        {"title_pattern": "("},
        {"title_pattern": re.compile("^Release")},
        {"title_pattern": ""},
        {"creator_id": 123},
        {"creator_id": ""},
    ],
    ids=str,
)
def test_a_filter_that_cannot_be_meant_is_found_when_the_dag_is_parsed(wrong: Any) -> None:
    with pytest.raises(InvalidInputError):
        triggers.ConferenceEventTrigger(**wrong)


def test_an_asset_watches_with_it() -> None:
    from airflow.sdk import Asset, AssetWatcher

    trigger = triggers.ConferenceEventTrigger()
    asset = Asset("meetings", watchers=[AssetWatcher(name="started", trigger=trigger)])
    assert asset.watchers[0].trigger is trigger


# In the triggerer's runner


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Return a sandbox that delivers an event again soon, to which the default connection leads."""
    with Sandbox(redelivery=1.0) as running:
        monkeypatch.setenv(CONN_VARIABLE, running.connection_json())
        yield running


def make(sweep_after: Sequence[float] = (2.0, 4.0), **filters: Any) -> Any:
    """Return a trigger whose waits are shorter, in the same proportions."""

    class Quick(triggers.ConferenceEventTrigger):
        stream_options = StreamOptions(
            join=(0.1, 1.0),
            wait=(0.02, 0.1),
            restart=2.0,
            sweeps=tuple(sweep_after),
            tick=0.2,
            stored=0.5,
            unconfirmed=0.02,
        )

    return Quick(**filters)


@pytest.fixture(autouse=True)
def triggerer_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process of a triggerer be a long time old."""
    monkeypatch.setattr(Sweeps, "fired_at", float("-inf"))


class Triggerer:
    """The runner of Airflow's triggerer, and in the supervisor's place this.

    :param takes: whether it takes what the runner has for the supervisor.
    :param stores: whether it stores that, and confirms what Airflow 3.3 asks to be confirmed.
    """

    def __init__(self, *, takes: bool = True, stores: bool = True) -> None:
        from airflow.jobs.triggerer_job_runner import TriggerRunner

        self.runner = TriggerRunner()
        self.fired: list[tuple[int, dict[str, Any]]] = []
        self._ids = iter(range(1, 100))
        self.takes = takes
        self.stores = stores

    def send(self, _message: object) -> None:
        """Answer a message of the masker's, which comes before there is any event."""

    async def asend(self, _message: object) -> None:
        """Answer a message of the masker's."""

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
        """Return the payloads of meetings' events that a trigger has fired."""
        return [
            payload for by, payload in self.fired if by == trigger_id and payload["event_type"] != "sweep"
        ]

    def sweeps(self, trigger_id: int) -> int:
        """Return how many sweeps a trigger has fired."""
        return self.fired.count((trigger_id, {"event_type": "sweep", "conference_id": None}))

    async def keep_storing(self) -> None:
        taken: list[int] = []
        while True:
            await asyncio.sleep(0.05)
            if taken and self.stores:  # it confirms in one round what it took in the one before
                self.runner._shared_streams.confirm_persisted(taken)
            taken = []
            while self.takes and self.runner.events:
                entry: Any = self.runner.events.popleft()
                trigger_id, event, *rest = (
                    entry if isinstance(entry, tuple) else (entry.trigger_id, entry.event, entry.persist_seq)
                )
                self.fired.append((trigger_id, event.payload))
                taken += [seq for seq in rest if seq is not None]

    async def stop(self) -> None:
        for details in self.runner.triggers.values():
            details["task"].cancel()
        for details in self.runner.triggers.values():
            with suppress(asyncio.CancelledError, BrokenPipeError):
                await details["task"]
        if hasattr(self.runner, "_shared_streams"):
            await self.runner._shared_streams.stop_all()


@asynccontextmanager
async def triggering(
    sandbox: Sandbox, *made: Any, **options: bool
) -> AsyncIterator[tuple[Triggerer, list[int]]]:
    """Run triggers in a triggerer, from when the sandbox knows of the stream."""
    from airflow.sdk.execution_time import task_runner

    triggerer = Triggerer(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_runner, "SUPERVISOR_COMMS", triggerer, raising=False)
        ids = [triggerer.start(trigger) for trigger in made]
        storing = asyncio.ensure_future(triggerer.keep_storing())
        try:
            await until(lambda: sandbox.streams)
            yield triggerer, ids
        finally:
            await triggerer.stop()
            storing.cancel()


async def test_a_meeting_that_starts_becomes_an_event_that_says_which(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        meeting = sandbox.create_conference("Release 1.0")
        await until(lambda: triggerer.of(only))
        (payload,) = triggerer.of(only)
        assert json.loads(json.dumps(payload)) == payload
        assert (payload["conference_id"], payload["title"]) == (meeting, "Release 1.0")
        assert (payload["scene"], payload["status"]) == ("conference_created", "started")
        assert payload["start_time"].endswith("+00:00")
        await until(lambda: acknowledged(sandbox))


async def test_each_watcher_gets_what_it_asked_for_over_one_connection(sandbox: Sandbox) -> None:
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
            return [(one["scene"], one["conference_id"]) for one in triggerer.of(ids[number])]

        assert heard(0) == [("conference_created", release)]
        assert sorted(heard(1)) == sorted(
            [("conference_created", release), ("conference_created", other), ("conference_closed", other)]
        )
        assert heard(2) == [("user_join", release)]
        assert heard(3) == []
        assert len(sandbox.calls_of("connect")) == 1


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow does not say what it has stored")
@pytest.mark.parametrize("not_yet", [{"takes": False}, {"stores": False}])
async def test_an_event_is_acknowledged_once_airflow_has_it(
    sandbox: Sandbox, not_yet: dict[str, bool]
) -> None:
    async with triggering(sandbox, make(), **not_yet) as (triggerer, (only,)):
        sandbox.create_conference()
        await until(lambda: triggerer.runner.events or triggerer.of(only))
        await asyncio.sleep(0.5)
        assert not acknowledged(sandbox)
        if not triggerer.takes:  # what it was not told to be stored is not told again
            triggerer.takes = True
            await until(lambda: acknowledged(sandbox))


@pytest.mark.skipif(AIRFLOW >= (3, 3), reason="Airflow says what it has stored")
async def test_where_airflow_does_not_say_what_it_stores_it_has_a_fixed_time_for_it(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        began = time.monotonic()
        for _ in range(5):
            sandbox.create_conference()
        await until(lambda: len(triggerer.of(only)) == 5)
        assert not any(event.acknowledged for event in sandbox.events)
        await until(lambda: acknowledged(sandbox))
        assert time.monotonic() - began >= 0.5


def test_what_airflow_did_not_store_starts_its_run_after_a_restart(sandbox: Sandbox) -> None:
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


class EndingLog:
    """The log of a runner whose triggerer ends while an event is on its way from a trigger into the queue.

    :param end: what happens to the runner while it logs that a trigger has fired.
    """

    def __init__(self, end: Any) -> None:
        self._end = end

    async def ainfo(self, message: str, **_details: object) -> None:
        if message == "Trigger fired event":
            await self._end()

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_details: None


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow does not say what it has stored")
@pytest.mark.parametrize("ends", ["killed", "cancelled", "stopping"])
def test_an_event_on_its_way_into_the_queue_of_a_triggerer_that_ends_comes_again(
    sandbox: Sandbox, ends: str
) -> None:
    async def first() -> None:
        async with triggering(sandbox, make(), make(title_pattern="^Other")) as (triggerer, (only, _)):
            logged = asyncio.Event()

            async def end() -> None:
                logged.set()
                if ends == "killed":  # the main process: what reads the log is gone
                    raise BrokenPipeError
                if ends == "cancelled":
                    triggerer.task(only).cancel()
                    await asyncio.sleep(60)
                triggerer.runner._shared_streams._groups.clear()  # what a stop begins with

            triggerer.runner.log = EndingLog(end)  # type: ignore[assignment]
            sandbox.create_conference()
            await logged.wait()
            await asyncio.sleep(0.1)
            if ends != "stopping":
                sandbox.create_conference("that only the other trigger is still there for")
            await asyncio.sleep(0.2)
            assert not any(event.acknowledged for event in sandbox.events)

    async def second() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            await until(lambda: len(triggerer.of(only)) == len(sandbox.events) and acknowledged(sandbox))

    drive(first)
    assert not any(event.acknowledged for event in sandbox.events)
    drive(second)


def test_an_event_that_comes_again_fires_nothing_even_after_a_restart(sandbox: Sandbox) -> None:
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


# Sweeps


def sweeps_after(*events: float, began: float = float("-inf")) -> list[float]:
    """Return when a trigger sweeps that fires at these times, if nothing else does; in seconds."""
    Sweeps.fired_at = began
    sweeps = Sweeps(StreamOptions().sweeps)
    found, coming = [], list(events)
    for now in range(int(max(events, default=0.0)) + 3600):
        while coming and coming[0] <= now:
            sweeps.fired(str(len(coming)), {"trigger"}, coming.pop(0))
        if sweeps.pop_due(float(now)):
            found.append(float(now))
    return found


def test_sweeps_repeat_with_growing_distance_after_a_burst_and_end() -> None:
    assert sweeps_after(1000.0, 1002.0) == [1012.0, 1042.0, 1162.0, 1642.0]


def test_a_meeting_that_starts_by_itself_brings_no_sweep() -> None:
    assert sweeps_after(1000.0) == []
    assert sweeps_after(1000.0, 2000.0, 3000.0) == []


def test_meetings_that_start_every_few_minutes_bring_few_sweeps() -> None:
    assert sweeps_after(*(1000.0 + 120.0 * number for number in range(30))) == [4640.0, 5120.0]


def test_the_first_event_after_the_triggerer_has_started_is_swept_for() -> None:
    assert sweeps_after(1060.0, began=1000.0) == [1220.0, 1700.0]


@pytest.mark.parametrize("gap", [0.1, 1.0, 2.0, 9.0, 20.0, 39.0, 61.0, 150.0, 299.0])
@pytest.mark.parametrize("away", [5.0, 40.0, 60.0, 300.0, 600.0])
@pytest.mark.parametrize("since", [-1.0, 0.5, 7.0])
def test_no_event_is_left_without_a_run_when_the_scheduler_was_away(
    gap: float, away: float, since: float
) -> None:
    """A model of Airflow's scheduler: a run gets the events up to the first one that was queued."""
    events = [1000.0 + gap * number for number in range(5)]
    fired = sorted([*events, *sweeps_after(*events)])
    back = 1000.0 + since + away
    queued, waiting, done = None, [], set()
    for at in [*fired, float("inf")]:
        taken = (
            None if queued is None else queued + 1.0 if not 1000.0 + since <= queued + 1.0 < back else back
        )
        if taken is not None and taken <= at:
            done |= {event for event in waiting if event <= queued}
            queued = None
        waiting.append(at)
        queued = at if queued is None else queued
    assert done >= {*events}


async def test_events_that_came_close_together_are_followed_by_sweeps(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        sandbox.create_conference()
        await until(lambda: triggerer.of(only) and acknowledged(sandbox) and not sweep_due())
        assert (len(triggerer.of(only)), triggerer.sweeps(only)) == (1, 0)
        sandbox.create_conference()
        sandbox.create_conference()
        await until(lambda: triggerer.sweeps(only))
        await until(lambda: not sweep_due())
        assert (len(triggerer.of(only)), triggerer.sweeps(only)) == (3, 2)


async def test_a_sweep_comes_in_time_on_a_stream_that_is_never_quiet(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make(title_pattern="^Release")) as (triggerer, (only,)):
        meeting = sandbox.create_conference("Release 1")
        sandbox.create_conference("Release 2")
        while not triggerer.sweeps(only):
            sandbox.join(meeting, str(time.monotonic()))
            await asyncio.sleep(0.1)


async def test_events_of_two_triggers_that_came_close_together_are_followed_by_a_sweep(
    sandbox: Sandbox,
) -> None:
    wanted = [make(title_pattern="^Release"), make(title_pattern="^L"), make(title_pattern="^Launch")]
    async with triggering(sandbox, *wanted) as (triggerer, (release, one, other)):
        sandbox.create_conference("Release")
        await until(lambda: triggerer.of(release))
        sandbox.create_conference("Launch")
        await until(lambda: triggerer.sweeps(one) and triggerer.sweeps(other))
        assert not triggerer.sweeps(release)


async def test_one_event_that_two_triggers_want_is_followed_by_no_sweep(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make(), make(title_pattern="^R")) as (triggerer, (one, other)):
        sandbox.create_conference("Release")
        await until(lambda: triggerer.of(one) and triggerer.of(other) and acknowledged(sandbox))
        await until(lambda: not sweep_due())
        assert triggerer.sweeps(one) == triggerer.sweeps(other) == 0


@pytest.mark.parametrize("process", ["the same", "another"])
def test_a_trigger_sweeps_after_one_that_ended_before_it_could(sandbox: Sandbox, process: str) -> None:
    async def first() -> None:
        async with triggering(sandbox, make(sweep_after=[60.0])) as (triggerer, (only,)):
            sandbox.create_conference()
            sandbox.create_conference()
            await until(lambda: len(triggerer.of(only)) == 2 and acknowledged(sandbox))
            assert not triggerer.sweeps(only)

    async def second() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            await until(lambda: triggerer.sweeps(only) and not sweep_due())
            assert triggerer.sweeps(only) in {1, 2}  # fewer if the second trigger comes late

    drive(first)
    if process == "another":
        token_cache.forget()
        Sweeps.fired_at = float("-inf")
    drive(second)


@pytest.mark.parametrize("field", ["title", "eventId"])
async def test_an_event_that_airflow_could_not_send_on_is_made_one_that_it_can(
    sandbox: Sandbox, field: str
) -> None:
    from airflow.sdk.execution_time.comms import _RequestFrame

    odd = "Release \ud83d\0"  # a title that was cut within an emoji
    model = {"conferenceId": "c1", "title": odd if field == "title" else "Release", "creatorNick": odd}
    data = {"openConfModel": model, "changeScene": "conference_created", "statusSeqNum": 2**64}
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        sandbox.push_event("meeting_status_change", data, event_id=odd if field == "eventId" else "e1")
        await until(lambda: triggerer.of(only) and acknowledged(sandbox))
        (payload,) = triggerer.of(only)
        assert _RequestFrame(id=1, body=payload).as_bytes()
        assert "\0" not in str(payload)
        assert payload["title"].startswith("Release")
        assert payload["sequence"] is None


def test_a_filter_that_an_older_version_took_fails_its_trigger_alone() -> None:
    from airflow.jobs.triggerer_job_runner import TriggerRunner
    from airflow.models.trigger import Trigger

    runner = TriggerRunner()
    kwargs = Trigger.encrypt_kwargs({"scenes": ["conference_of_old"]})
    runner.to_create.append(
        SimpleNamespace(  # type: ignore[arg-type]
            id=1,
            classpath=f"{MODULE}.ConferenceEventTrigger",
            encrypted_kwargs=kwargs,
            ti=None,
            dag_data=None,
        )
    )
    asyncio.run(runner.create_triggers())
    ((trigger_id, error),) = runner.failed_triggers
    assert trigger_id == 1
    assert "conference_of_old" in str(error)


async def test_many_events_at_once_over_connections_that_break_each_fire_once(sandbox: Sandbox) -> None:
    events = 1500  # more than a watcher's queue holds on Airflow 3.3
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        for number in range(events):
            if number in (events // 3, 2 * events // 3):
                sandbox.disconnect_streams(politely=number < events // 2)
            sandbox.create_conference(str(number))
        await until(lambda: acknowledged(sandbox))
        titles = [one["title"] for one in triggerer.of(only)]
        assert sorted(titles, key=int) == [*map(str, range(events))]


async def test_a_trigger_ends_at_once_when_it_is_cancelled(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        began = time.monotonic()
        triggerer.task(only).cancel()
        with suppress(asyncio.CancelledError):
            await triggerer.task(only)
        assert time.monotonic() - began < 15.0
        await until(lambda: not sandbox.streams)


async def test_a_trigger_that_is_cancelled_while_it_fires_leaves_the_stream(sandbox: Sandbox) -> None:
    trigger = make()
    events = trigger.run()
    following: Any = asyncio.ensure_future(events.__anext__())
    await until(lambda: sandbox.streams)
    sandbox.create_conference()
    await following  # and is now where the runner would be, with the event in its hands
    await trigger.cleanup()
    await until(lambda: not sandbox.streams)


def test_no_secret_is_among_the_arguments_of_a_trigger(sandbox: Sandbox) -> None:
    assert sandbox.client_secret not in repr(make())
    assert "secret" not in " ".join(inspect.signature(make).parameters)


# What a task makes of it


def asset_event(payload: Any) -> Any:
    return SimpleNamespace(extra={"from_trigger": True, "payload": payload})


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


def test_the_example_locks_the_meetings_that_have_started() -> None:
    example = Path(__file__).parent.parent / "example_dags" / "example_lock_when_started.py"
    tasks = runpy.run_path(str(example))
    events = [asset_event({"event_id": "e", "conference_id": "c"}), asset_event({"conference_id": None})]
    assert tasks["started"].function({"asset": events}) == ["c"]

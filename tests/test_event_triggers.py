"""``ConferenceEventTrigger`` as Airflow runs it: in the triggerer's own runner, against the sandbox."""

from __future__ import annotations

import asyncio
import json
import runpy
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="events are for Airflow 3")

from airflow import __version__ as airflow_version
from conftest import CONN_VARIABLE
from streams import acknowledged, drive, sweep_due
from waiting import until

from airflow_provider_dingconf import connection_hook, triggers
from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.event_stream import StreamOptions
from airflow_provider_dingconf.client.sweeps import Sweeps
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.sandbox import Sandbox

CONFIRMS = tuple(map(int, airflow_version.split(".")[:2])) >= (3, 3)
"""Whether Airflow confirms which events it has stored."""

PATH = "airflow_provider_dingconf.event_triggers.ConferenceEventTrigger"
NEVER = float("-inf")


def test_a_trigger_survives_its_way_through_the_database_and_equal_filters_are_one_trigger() -> None:
    scenes = ["conference_closed", "conference_created"]
    rest = {"dingtalk_conn_id": "other", "title_pattern": "^R", "creator_id": "u1"}
    for given in (scenes, tuple(reversed(scenes)), {*scenes}):
        made = triggers.ConferenceEventTrigger(scenes=given, **rest)  # type: ignore[arg-type]
        path, kwargs = made.serialize()
        assert (path, kwargs) == (PATH, {"scenes": scenes, **rest})
        again = triggers.ConferenceEventTrigger(**json.loads(json.dumps(kwargs)))
        assert (again.serialize(), again.filter) == (made.serialize(), made.filter)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenes": ["conference_create"]},
        {"scenes": b"user_join"},
        {"creator_id": ""},
        {"dingtalk_conn_id": ["one", "other"]},
        {"dingtalk_conn_id": None},
    ],
    ids=str,
)
def test_an_invalid_filter_or_connection_id_is_an_error_of_the_dag_file(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"^{next(iter(wrong))}: ") as raised:
        triggers.ConferenceEventTrigger(**wrong)
    assert str(raised.value).count("Nothing was sent to DingTalk.") == 1


# In the triggerer's runner


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Return a sandbox that delivers an event again soon, to which the default connection leads."""
    with Sandbox(redelivery=1.0) as running:
        monkeypatch.setenv(CONN_VARIABLE, running.connection_json())
        yield running


def make(sweep_after: Sequence[float] = (1.0, 2.0), **filters: Any) -> Any:
    """Return a trigger with shorter waits."""

    class Quick(triggers.ConferenceEventTrigger):
        stream_options = StreamOptions(
            join=(0.1, 1.0),
            wait=(0.02, 0.1),
            restart=2.0,
            sweeps=tuple(sweep_after),
            tick=0.1,
            stored=0.5,
            unconfirmed=0.02,
        )

    return Quick(**filters)


@pytest.fixture(autouse=True)
def triggerer_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the triggerer's process have started long ago."""
    monkeypatch.setattr(Sweeps, "fired_at", NEVER)


class Triggerer:
    """The runner of Airflow's triggerer, with this in place of its supervisor.

    :param takes: whether it takes events from the runner.
    :param stores: whether it stores them, and confirms that to Airflow 3.3.
    """

    def __init__(self, *, takes: bool = True, stores: bool = True) -> None:
        from airflow.jobs.triggerer_job_runner import TriggerRunner

        self.runner = TriggerRunner()
        self.fired: list[tuple[int, dict[str, Any]]] = []
        self._ids = iter(range(1, 100))
        self.takes = takes
        self.stores = stores

    def send(self, _message: object) -> None:
        """Ignore the masker's messages, which come before any event."""

    async def asend(self, _message: object) -> None:
        """Ignore the masker's messages."""

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
        """Return the payloads of the meetings' events that a trigger has fired."""
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
            if taken and self.stores:  # what it took in one round is confirmed in the next
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


async def test_each_watcher_gets_the_events_it_wants_over_one_connection(sandbox: Sandbox) -> None:
    filters: list[dict[str, Any]] = [
        {"title_pattern": "^Release"},
        {"scenes": ["conference_created", "conference_closed"]},
        {"scenes": ["user_join"]},
        {"creator_id": "nobody"},
    ]
    async with triggering(sandbox, *(make(**wanted) for wanted in filters)) as (triggerer, ids):
        release, other = sandbox.create_conference("Release"), sandbox.create_conference("other")
        sandbox.join(release, "somebody")
        sandbox.end(other)
        await until(lambda: acknowledged(sandbox))
        fired = [sorted((one["scene"], one["conference_id"]) for one in triggerer.of(each)) for each in ids]
    created = [("conference_created", release), ("conference_created", other)]
    assert fired == [
        created[:1],
        sorted([*created, ("conference_closed", other)]),
        [("user_join", release)],
        [],
    ]
    assert len(sandbox.calls_of("connect")) == 1


@pytest.mark.skipif(not CONFIRMS, reason="Airflow does not say what it has stored")
@pytest.mark.parametrize("not_yet", [{"takes": False}, {"stores": False}], ids=str)
async def test_an_event_is_acknowledged_once_airflow_has_it(
    sandbox: Sandbox, not_yet: dict[str, bool]
) -> None:
    async with triggering(sandbox, make(), **not_yet) as (triggerer, (only,)):
        sandbox.create_conference()
        await until(lambda: triggerer.runner.events or triggerer.of(only))
        await asyncio.sleep(0.3)
        assert not acknowledged(sandbox)
        if not triggerer.takes:  # Airflow confirms no event that it took and did not store
            triggerer.takes = True
            await until(lambda: acknowledged(sandbox))


@pytest.mark.skipif(CONFIRMS, reason="Airflow says what it has stored")
async def test_an_older_airflow_has_a_fixed_time_to_store_an_event(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        began = time.monotonic()
        for _ in range(5):
            sandbox.create_conference()
        await until(lambda: len(triggerer.of(only)) == 5)
        assert not any(event.acknowledged for event in sandbox.events)
        await until(lambda: acknowledged(sandbox))
        assert time.monotonic() - began >= 0.5


def run_again_until_stored(sandbox: Sandbox) -> None:
    """Run a trigger in another triggerer, until it has fired every event and Airflow has them."""

    async def again() -> None:
        async with triggering(sandbox, make()) as (triggerer, (only,)):
            await until(lambda: len(triggerer.of(only)) == len(sandbox.events) and acknowledged(sandbox))

    drive(again)


def test_what_airflow_did_not_store_starts_its_run_after_a_restart(sandbox: Sandbox) -> None:
    async def first() -> None:
        async with triggering(sandbox, make(), stores=False) as (triggerer, (only,)):
            sandbox.create_conference()
            await until(lambda: triggerer.of(only))

    drive(first)
    assert not acknowledged(sandbox)
    run_again_until_stored(sandbox)


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


@pytest.mark.skipif(not CONFIRMS, reason="Airflow does not say what it has stored")
@pytest.mark.parametrize("ends", ["killed", "cancelled", "stopping"])
def test_an_event_on_its_way_into_the_queue_of_a_triggerer_that_ends_comes_again(
    sandbox: Sandbox, ends: str
) -> None:
    async def first() -> None:
        async with triggering(sandbox, make(), make(title_pattern="^Other")) as (triggerer, (only, _)):
            logged = asyncio.Event()

            async def end() -> None:
                logged.set()
                if ends == "killed":  # the main process, which reads the log, is gone
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
                sandbox.create_conference("that only the other trigger can fire for")
            await asyncio.sleep(0.2)

    drive(first)
    assert not any(event.acknowledged for event in sandbox.events)
    run_again_until_stored(sandbox)


def test_an_event_that_comes_again_fires_nothing_even_after_a_restart(sandbox: Sandbox) -> None:
    data = {"openConfModel": {"conferenceId": "c1"}, "changeScene": "conference_created"}

    def run(*pushes: list[str]) -> list[str]:
        fired: list[str] = []

        async def once() -> None:
            async with triggering(sandbox, make()) as (triggerer, (only,)):
                for pushed in pushes:
                    for event_id in pushed:
                        sandbox.push_event("meeting_status_change", data, event_id=event_id)
                    await until(lambda: triggerer.of(only) and acknowledged(sandbox))
                fired.extend(one["event_id"] for one in triggerer.of(only))

        drive(once)
        return fired

    assert run(["e1", "e1"], ["e1"]) == ["e1"]
    assert run(["e1", "e2"]) == ["e2"]


# Sweeps


def sweeps_after(*events: float, began: float = NEVER) -> list[float]:
    """Return when a trigger sweeps that fires at these times, if nothing else does; in seconds."""
    Sweeps.fired_at = began
    sweeps = Sweeps(StreamOptions().sweeps)
    found, coming = [], list(events)
    for now in range(int(max(events)) + 3600):
        while coming and coming[0] <= now:
            sweeps.fired(str(len(coming)), {"trigger"}, coming.pop(0))
        if sweeps.pop_due(float(now)):
            found.append(float(now))
    return found


@pytest.mark.parametrize(
    ("events", "began", "sweeps"),
    [
        pytest.param([1000.0], NEVER, [], id="one event has none"),
        pytest.param([1000.0, 2000.0, 3000.0], NEVER, [], id="events far from each other have none"),
        pytest.param([1000.0, 1002.0], NEVER, [1012.0, 1042.0, 1162.0, 1642.0], id="a burst has several"),
        pytest.param(
            [1000.0 + 120.0 * number for number in range(30)], NEVER, [4640.0, 5120.0], id="a series has few"
        ),
        pytest.param([1060.0], 1000.0, [1220.0, 1700.0], id="the first event of a triggerer has two"),
    ],
)
def test_sweeps_follow_events_that_come_close_together_at_growing_distances(
    events: list[float], began: float, sweeps: list[float]
) -> None:
    assert sweeps_after(*events, began=began) == sweeps


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
    wanted = [make(title_pattern=pattern) for pattern in ("^Release", "^L", "^Launch")]
    async with triggering(sandbox, *wanted) as (triggerer, (release, *both)):
        sandbox.create_conference("Release")
        await until(lambda: triggerer.of(release))
        sandbox.create_conference("Launch")
        await until(lambda: all(map(triggerer.sweeps, both)))
        assert not triggerer.sweeps(release)


async def test_one_event_that_two_triggers_want_is_followed_by_no_sweep(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make(), make(title_pattern="^R")) as (triggerer, both):
        sandbox.create_conference("Release")
        await until(lambda: all(map(triggerer.of, both)) and acknowledged(sandbox))
        await until(lambda: not sweep_due())
        assert not any(map(triggerer.sweeps, both))


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
        Sweeps.fired_at = NEVER
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
    old: Any = SimpleNamespace(
        id=1,
        classpath=PATH,
        encrypted_kwargs=Trigger.encrypt_kwargs({"scenes": ["conference_of_old"]}),
        ti=None,
        dag_data=None,
    )
    runner.to_create.append(old)
    asyncio.run(runner.create_triggers())
    ((trigger_id, error),) = runner.failed_triggers
    assert trigger_id == 1
    assert "conference_of_old" in str(error)


async def test_many_events_at_once_over_connections_that_break_each_fire_once(sandbox: Sandbox) -> None:
    events = 1500  # more than a watcher's queue holds on Airflow 3.3
    sandbox.redelivery = 60.0  # after a second, as for the others, a busy machine drowns in what comes again
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        for number in range(events):
            if number in (events // 3, 2 * events // 3):
                sandbox.disconnect_streams(politely=number < events // 2)
            sandbox.create_conference(str(number))
        await until(lambda: acknowledged(sandbox))
        titles = [one["title"] for one in triggerer.of(only)]
        assert sorted(titles, key=int) == [*map(str, range(events))]


async def test_an_error_of_a_secrets_backend_is_named_and_not_quoted(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the backend refuses s3cret")

    monkeypatch.setattr(connection_hook, "get_async_connection", broken)
    following: Any = asyncio.ensure_future(make().run().__anext__())
    await until(lambda: "no events are received" in caplog.text)
    following.cancel()
    assert "the connection dingtalk_default could not be looked up (RuntimeError)" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_cancelled_trigger_leaves_the_stream(sandbox: Sandbox) -> None:
    async with triggering(sandbox, make()) as (triggerer, (only,)):
        triggerer.task(only).cancel()
        with suppress(asyncio.CancelledError):
            await triggerer.task(only)
        await until(lambda: not sandbox.streams)


async def test_a_trigger_that_is_cancelled_while_it_fires_leaves_the_stream(sandbox: Sandbox) -> None:
    trigger = make()
    following: Any = asyncio.ensure_future(trigger.run().__anext__())
    await until(lambda: sandbox.streams)
    sandbox.create_conference()
    await following  # the generator is suspended at its yield, as while the runner queues the event
    await trigger.cleanup()
    await until(lambda: not sandbox.streams)


# What a task makes of it


def asset_event(payload: Any) -> Any:
    return SimpleNamespace(extra={"from_trigger": True, "payload": payload})


SWEEP = asset_event({"event_type": "sweep", "conference_id": None})


def test_a_task_gets_the_payloads_of_all_meetings_once_and_no_sweep() -> None:
    one = {"event_id": "e1", "conference_id": "c1"}
    other = {"event_id": "e2", "conference_id": "c1"}
    not_ours = [SimpleNamespace(extra={}), SimpleNamespace(extra=None), asset_event({"conference_id": ["c"]})]
    events = {"asset": [asset_event(one), SWEEP], "another": [*map(asset_event, (other, one)), *not_ours]}
    assert triggers.triggering_conferences(events) == [one, other]
    odd = {"event_id": ["e"], "conference_id": "c2"}
    assert triggers.triggering_conferences({"asset": [asset_event(odd)]}) == [odd]
    assert triggers.triggering_conferences({}) == triggers.triggering_conferences(None) == []


def test_the_example_locks_the_meetings_that_have_started() -> None:
    example = Path(__file__).parent.parent / "example_dags" / "example_lock_when_started.py"
    started: Callable[..., Any] = runpy.run_path(str(example))["started"].function
    assert started({"asset": [asset_event({"event_id": "e", "conference_id": "c"}), SWEEP]}) == ["c"]

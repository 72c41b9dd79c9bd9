"""All operators, and sections of a DAG: tasks that run while a meeting is locked, or their own one is open.

A DAG file that imports this module imports neither the hook nor an HTTP library: the hook is made when the
task runs.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from airflow.providers.common.compat.sdk import TaskGroup
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_2_PLUS

from airflow_provider_dingconf.call_operator import DingTalkOperator
from airflow_provider_dingconf.compat import empty_operator
from airflow_provider_dingconf.dingtalk.conferences import NAMES
from airflow_provider_dingconf.dingtalk.inputs import check_switch
from airflow_provider_dingconf.lock_operators import LockConferenceOperator, UnlockConferenceOperator
from airflow_provider_dingconf.meeting_operators import (
    CloseConferenceOperator,
    ConferenceMembersOperator,
    CreateConferenceOperator,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CloseConferenceOperator",
    "ConferenceMembersOperator",
    "ConferenceSection",
    "CreateConferenceOperator",
    "DingTalkOperator",
    "LockConferenceOperator",
    "LockedSection",
    "UnlockConferenceOperator",
    "conference",
    "conference_lock",
]

# A worker that is lost costs a try, and leaves the meeting locked or open without a next one. A create whose
# worker is lost may have created a meeting, and a next try would create another one.
RETRIES = {"create": 0, "lock": 2, "unlock": 5, "close": 5}

# Each delay is twice as long as the one before: those of an unlock outlast an address ban of five minutes.
RETRY_DELAY = timedelta(seconds=10)
RETRY_BACKOFF = 2.0 if AIRFLOW_V_3_2_PLUS else True

# A meeting that is locked or open does not stay so because the unlock or close of an earlier run has failed.
REGARDLESS_OF_PAST: Any = {"depends_on_past": False, "wait_for_downstream": False}


class LockedSection(NamedTuple):
    """The two tasks around a locked section."""

    lock: LockConferenceOperator
    unlock: UnlockConferenceOperator


@contextmanager
def conference_lock(
    conference_id: Any = None, *, name: str = "conference", group_id: str | None = None, **kwargs: Any
) -> Iterator[LockedSection]:
    """Make a locked section of a DAG: the tasks of the block run while the meeting is locked.

    .. code-block:: python

        with conference_lock("{{ params.conference_id }}"):
            build() >> deploy()

    The lock is the section's setup and the unlock its teardown, in Airflow's sense: the unlock runs whether
    the work succeeds, fails or is skipped, and clearing the work clears both. The DAG run fails if the work
    fails, and if the unlock does: an empty teardown between the two, ``<name>_work_done``, lets Airflow count
    both; it needs no worker. The unlock takes the meetings that the lock has locked: a room code may stand
    for another one by then.

    Both tasks are retried by default, the lock twice and the unlock five times: after 10 seconds, and each
    time after twice as long. A try of the lock that does not succeed unlocks what it has locked before it
    ends; its retry locks all again.

    A meeting can still stay locked, for example if the run reaches its ``dagrun_timeout`` before the unlock
    begins: use an :class:`~airflow_provider_dingconf.notifications.UnlockConferenceNotifier`, too. Of two
    runs that lock the same meeting, the first to end unlocks it for the other: set ``max_active_runs=1`` on
    the DAG.

    :param conference_id: the meeting's conferenceId, or a list of them. (templated)
    :param name: makes the tasks' ids, ``lock_<name>`` and ``unlock_<name>``.
    :param group_id: puts the section into a task group of this id; None for no group.
    :param kwargs: any other parameter of the two operators; ``retries``, ``retry_delay`` and
        ``max_retry_delay`` of the DAG do not count here.
    """
    if conference_id is not None:
        kwargs["conference_id"] = conference_id
    with TaskGroup(group_id) if group_id else nullcontext():
        lock = LockConferenceOperator(
            task_id=f"lock_{name}", **{**_retried(kwargs, "lock"), "unlock_on_failure": True}
        )
        kwargs.pop("unlock_on_failure", None)
        # A teardown runs if one of the setups before it succeeded. The task of an XCom may be one: the unlock
        # depends on the lock alone.
        if lock.named_by != "conference_id" or lock.upstream_task_ids:
            lock.do_xcom_push = True  # the unlock needs it
            no_other = dict.fromkeys((*NAMES, "title_pattern", "creator_id"))  # default_args may have them
            kwargs |= {**no_other, "running": False, "conference_id": lock.output}
        unlock = UnlockConferenceOperator(task_id=f"unlock_{name}", **_retried(kwargs, "unlock"))
        with _between(lock, unlock, f"{name}_work_done"):
            yield LockedSection(lock, unlock)


class ConferenceSection(NamedTuple):
    """The tasks around a section with its own meeting, and what they say of the meeting."""

    create: CreateConferenceOperator
    close: CloseConferenceOperator
    lock: LockConferenceOperator | None = None
    unlock: UnlockConferenceOperator | None = None

    @property
    def conference_id(self) -> Any:
        """The XCom of the meeting's conferenceId, for the tasks inside."""
        return cast("Any", self.create.output)["conference_id"]

    @property
    def room_code(self) -> Any:
        """The XCom of the room code, which a person sees in DingTalk (会议号)."""
        return cast("Any", self.create.output)["room_code"]

    @property
    def join_url(self) -> Any:
        """The XCom of the address to join the meeting with a browser."""
        return cast("Any", self.create.output)["join_url"]


@contextmanager
def conference(
    title: str,
    creator_id: str,
    *,
    invite: Any = None,
    invite_creator: bool = True,
    with_password: bool = False,
    lock: bool = False,
    name: str = "conference",
    group_id: str | None = None,
    **kwargs: Any,
) -> Iterator[ConferenceSection]:
    """Make a section of a DAG with its own meeting, which is created before its tasks and closed after them.

    .. code-block:: python

        with conference("Stand-up", creator_id="{{ params.creator_id }}") as section:
            announce(section.join_url) >> record(section.conference_id)

    The create is the section's setup and the close its teardown, as in :func:`conference_lock`. The close is
    retried five times by default, and the create not at all: the next try would create a second meeting if
    the process of the one before was lost after its call. A throttled create is repeated within the call.

    A meeting can still stay open, for example if the run reaches its ``dagrun_timeout`` before the close
    begins, or if the response to the create is lost: the error then says what may exist.

    ``title``, ``creator_id``, ``invite``, ``invite_creator`` and ``with_password`` are parameters of the
    create: see :class:`CreateConferenceOperator`.

    :param lock: whether the meeting is locked as soon as it is created, and unlocked before it is closed:
        nobody can join, not even those who are invited. To give people time, use :func:`conference_lock`
        inside the block instead, after a task that waits.
    :param name: makes the tasks' ids: ``create_<name>``, ``close_<name>``, and as in
        :func:`conference_lock`.
    :param group_id: puts the section into a task group of this id; None for no group.
    :param kwargs: parameters of all operators of the section, such as ``dingtalk_conn_id``, ``on_error`` and
        ``retries``; as in :func:`conference_lock`, ``retries`` of the DAG do not count here.
    """
    check_switch("lock", lock)
    with TaskGroup(group_id) if group_id else nullcontext():
        create = CreateConferenceOperator(
            task_id=f"create_{name}",
            title=title,
            creator_id=creator_id,
            invite=invite,
            invite_creator=invite_creator,
            with_password=with_password,
            **{**_retried(kwargs, "create"), "do_xcom_push": True, "multiple_outputs": True},
        )
        close = CloseConferenceOperator(
            task_id=f"close_{name}",
            conference_id=cast("Any", create.output),
            creator_id=creator_id,
            **_retried(kwargs, "close"),
        )
        kwargs["trigger_rule"] = "all_success"  # Airflow allows no other after a setup
        with (
            _between(create, close, f"{name}_done"),
            conference_lock(create.output, name=name, **kwargs) if lock else nullcontext(()) as locked,
        ):
            yield ConferenceSection(create, close, *locked)


def _retried(kwargs: dict[str, Any], action: str) -> dict[str, Any]:
    """Return the parameters of a task of a section, which has its own defaults and not the DAG's."""
    given = kwargs.get("default_args") or {}
    defaults: dict[str, Any] = {"retries": RETRIES[action]}
    if "retry_delay" not in {**given, **kwargs}:
        defaults |= {"retry_delay": RETRY_DELAY, "retry_exponential_backoff": RETRY_BACKOFF}
        defaults["max_retry_delay"] = None
    of_past = REGARDLESS_OF_PAST if action in {"unlock", "close"} else {}
    return {**kwargs, **of_past, "default_args": {**defaults, **given}}


@contextmanager
def _between(setup: Any, teardown: Any, work_done_id: str) -> Iterator[None]:
    """Put the tasks of the block between a setup and its teardown.

    Not by Airflow's own ``with`` of a teardown: it forgets the outer block when an inner one ends, and runs
    work that needs another task's XCom before the setup. A run's state is that of its last tasks, and a
    teardown is none of them unless ``on_failure_fail_dagrun``, which makes the work before it none: hence the
    teardown in between.
    """
    work_done = empty_operator()(task_id=work_done_id, **REGARDLESS_OF_PAST)
    before = set(teardown.dag.task_ids)
    yield
    work = [task for task in teardown.dag.tasks if task.task_id not in before]
    ids = {task.task_id for task in work}
    for task in work:
        if not ids & task.upstream_task_ids and setup.task_id not in task.upstream_task_ids:
            setup >> task
        if not ids & task.downstream_task_ids:
            task >> work_done
    work_done.as_teardown(setups=setup)
    teardown.as_teardown(setups=setup, on_failure_fail_dagrun=True)
    work_done >> teardown

"""All operators, and the sections ``conference_lock`` and ``conference``.

Importing this module into a DAG file imports neither the hook nor an HTTP library: a task makes its hook when
it runs.
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

# The loss of a worker costs a try. Without another try, the meeting would stay locked or open. A create that
# loses its worker may have created a meeting, and another try would create a second one.
RETRIES = {"create": 0, "lock": 2, "unlock": 5, "close": 5}

# Each delay is twice as long as the one before: the five of an unlock outlast an address ban of five minutes.
RETRY_DELAY = timedelta(seconds=10)
RETRY_BACKOFF = 2.0 if AIRFLOW_V_3_2_PLUS else True

# The meeting of a section is known, and the DAG's default_args may name others.
NO_OTHER_MEETING: Any = {**dict.fromkeys((*NAMES, "title_pattern", "creator_id")), "running": False}

# A meeting that is locked or open does not stay so because the unlock or close of an earlier run has failed.
REGARDLESS_OF_PAST: Any = {"depends_on_past": False, "wait_for_downstream": False}


class LockedSection(NamedTuple):
    """The two tasks around a locked section."""

    lock: LockConferenceOperator
    """The task that locks: the setup of the section."""
    unlock: UnlockConferenceOperator
    """The task that unlocks: the teardown of the section."""


@contextmanager
def conference_lock(
    conference_id: Any = None, *, name: str = "conference", group_id: str | None = None, **kwargs: Any
) -> Iterator[LockedSection]:
    """Make a locked section of a DAG: the tasks of the block run while the meeting is locked.

    .. code-block:: python

        with conference_lock("{{ params.conference_id }}"):
            build() >> deploy()

    The lock is the setup of the section and the unlock is its teardown, in Airflow's sense: the unlock runs
    whether the work succeeds, fails or is skipped, and clearing the work clears both. The run fails if the
    work fails, and also if the unlock fails. For this, an empty task comes between the two,
    ``<name>_work_done``; it needs no worker. The unlock unlocks the meetings that were locked, even if a room
    code stands for another meeting by then.

    By default, Airflow retries the lock twice and the unlock five times: after 10 seconds, and each time
    after twice as long. If a try of the lock does not succeed, it unlocks what it locked before it ends, and
    the retry locks all meetings again.

    A meeting can still stay locked, for example if the run reaches its ``dagrun_timeout`` before the unlock
    starts: add an :class:`~airflow_provider_dingconf.notifications.UnlockConferenceNotifier`. If two runs
    lock the same meeting, the first one to end unlocks it for both: set ``max_active_runs=1`` on the DAG.

    :param conference_id: the meeting's conferenceId, or a list of them. (templated)
    :param name: names the tasks ``lock_<name>`` and ``unlock_<name>``.
    :param group_id: puts the section into a task group with this id; None for no group.
    :param kwargs: any other parameter of the two operators. The DAG's ``retries``, ``retry_delay`` and
        ``max_retry_delay`` have no effect here.
    """
    if conference_id is not None:
        kwargs["conference_id"] = conference_id
    with TaskGroup(group_id) if group_id else nullcontext():
        lock = LockConferenceOperator(
            task_id=f"lock_{name}", **{**_retried(kwargs, "lock"), "unlock_on_failure": True}
        )
        kwargs.pop("unlock_on_failure", None)
        # Airflow runs a teardown if any of its setups succeeded, and the task behind an XCom may be a setup:
        # so the unlock must depend on the lock alone.
        if lock.named_by != "conference_id" or lock.upstream_task_ids:
            lock.do_xcom_push = True  # the unlock needs it
            kwargs |= {**NO_OTHER_MEETING, "conference_id": lock.output}
        unlock = UnlockConferenceOperator(task_id=f"unlock_{name}", **_retried(kwargs, "unlock"))
        with _between(lock, unlock, f"{name}_work_done"):
            yield LockedSection(lock, unlock)


class ConferenceSection(NamedTuple):
    """The tasks around a section with its own meeting, and the XComs that describe the meeting."""

    create: CreateConferenceOperator
    """The task that creates the meeting: the setup of the section."""
    close: CloseConferenceOperator
    """The task that closes the meeting: the teardown of the section."""
    lock: LockConferenceOperator | None = None
    """The task that locks the meeting; None without ``lock=True``."""
    unlock: UnlockConferenceOperator | None = None
    """The task that unlocks the meeting; None without ``lock=True``."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the tasks that there are, as Airflow does in ``prepare >> section``."""
        tasks = self.create, self.close, self.lock, self.unlock
        return (each for each in tasks if each is not None)

    @property
    def conference_id(self) -> Any:
        """The XCom with the meeting's conferenceId, for the tasks inside."""
        return cast("Any", self.create.output)["conference_id"]

    @property
    def room_code(self) -> Any:
        """The XCom with the room code, which people see in DingTalk (会议号)."""
        return cast("Any", self.create.output)["room_code"]

    @property
    def join_url(self) -> Any:
        """The XCom with the address at which a browser joins the meeting."""
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
    """Make a section of a DAG with its own meeting: created before the tasks of the block, closed after them.

    .. code-block:: python

        with conference("Stand-up", creator_id="{{ params.creator_id }}") as section:
            announce(section.join_url) >> record(section.conference_id)

    The create is the setup of the section and the close is its teardown, as in :func:`conference_lock`. By
    default, Airflow retries the close five times, and does not retry the create: if a try loses its process
    after its call, the next try creates a second meeting. The hook repeats a throttled create.

    A meeting can still stay open, for example if the run reaches its ``dagrun_timeout`` before the close
    starts, or if the response to the create is lost. In the latter case, the error says what may exist.

    For ``title``, ``creator_id``, ``invite``, ``invite_creator`` and ``with_password``,
    see :class:`CreateConferenceOperator`.

    :param lock: whether to lock the meeting as soon as it is created, and unlock it before it is closed.
        Nobody can join then, not even the people you invite. To give people time, use
        :func:`conference_lock` inside the block instead, after a task that waits.
    :param name: names the tasks ``create_<name>`` and ``close_<name>``; with ``lock``, also those of
        :func:`conference_lock`.
    :param group_id: puts the section into a task group with this id; None for no group.
    :param kwargs: parameters of all operators of the section, such as ``dingtalk_conn_id``, ``on_error`` and
        ``retries``. The DAG's ``retries`` and its delays have no effect here, as in :func:`conference_lock`.
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
        kwargs |= {**NO_OTHER_MEETING, "conference_id": create.output}
        kwargs["trigger_rule"] = "all_success"  # Airflow allows no other after a setup
        with (
            _between(create, close, f"{name}_done"),
            conference_lock(name=name, **kwargs) if lock else nullcontext(()) as locked,
        ):
            yield ConferenceSection(create, close, *locked)


def _retried(kwargs: dict[str, Any], action: str) -> dict[str, Any]:
    """Return the parameters of a task of a section, with the section's defaults in place of the DAG's."""
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

    Airflow's own ``with`` of a teardown forgets the outer block when an inner one ends, and runs work that
    needs another task's XCom before the setup.

    A run gets its state from its last tasks. A teardown counts as one of them only with
    ``on_failure_fail_dagrun``, and then the work before it does not count. So there is a second teardown in
    between, which counts for the work.
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

"""``LockConferenceOperator``, ``UnlockConferenceOperator``, and the two around a section of a DAG.

A DAG file that imports this module imports neither the hook nor an HTTP library: the hook is made when
the task runs.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseOperator,
    TaskDeferred,
    TaskGroup,
    conf,
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.calls import LOCK_PAGE
from airflow_provider_dingconf.dingtalk.conferences import conference_id_in, given_name
from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceClosedError,
    ConferencesError,
    DingTalkError,
    InvalidInputError,
)
from airflow_provider_dingconf.dingtalk.limits import (
    CALLS_PER_SECOND,
    CONCURRENCY,
    MAX_ATTEMPTS,
    MAX_SECONDS,
    check_bulk_limits,
    check_limits,
)
from airflow_provider_dingconf.links import (
    CallDocumentationLink,
    ErrorDocumentationLink,
    JoinConferenceLink,
    keep_links,
    links_for,
)
from airflow_provider_dingconf.outcomes import (
    Outcome,
    apply_outcome,
    check_on_error,
    outcome_of,
    outcome_of_all,
    table,
)

try:
    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy
except ImportError:  # Airflow before 3.3
    _DEFAULTS: dict[str, Any] = {}
else:
    _DEFAULTS = {"retry_policy": DingTalkRetryPolicy()}

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.dingtalk.conferences import Conference
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook, LockResult
    from airflow_provider_dingconf.progress import Progress

WORKER_WAIT = 5.0
"""Seconds: a deferrable task waits no longer than this in its worker slot."""

TRIGGERER_WAIT = 3_600.0
"""Seconds: no task waits longer than this in the triggerer; Airflow's own ``retries`` then apply."""


_NOT_GIVEN: Any = object()

_PARAMETERS = frozenset(
    {
        "dingtalk_conn_id",
        "on_error",
        "max_attempts",
        "max_seconds",
        "deferrable",
        "concurrency",
        "calls_per_second",
    }
)


class _ConferenceOperator(BaseOperator):
    """What locking and unlocking have in common."""

    action: ClassVar[str]
    unlock_on_failure = False

    template_fields: Sequence[str] = (
        "conference_id",
        "room_code",
        "schedule_conference_id",
        "title_pattern",
        "creator_id",
        "dingtalk_conn_id",
    )
    ui_color = "#1677ff"
    ui_fgcolor = "#ffffff"
    operator_extra_links = (CallDocumentationLink(), ErrorDocumentationLink(), JoinConferenceLink())

    def __init__(
        self,
        *,
        conference_id: str | Iterable[str] | None = _NOT_GIVEN,
        room_code: str | None = None,
        schedule_conference_id: str | None = None,
        running: bool = False,
        title_pattern: str = _NOT_GIVEN,
        creator_id: str = _NOT_GIVEN,
        dingtalk_conn_id: str = "dingtalk_default",
        on_error: Mapping[str, Outcome | str] | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        max_seconds: float = MAX_SECONDS,
        concurrency: int = CONCURRENCY,
        calls_per_second: float = CALLS_PER_SECOND,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        kwargs["default_args"] = {**_DEFAULTS, **(kwargs.get("default_args") or {})}
        super().__init__(**kwargs)
        check_limits(max_attempts, max_seconds)
        check_bulk_limits(concurrency, calls_per_second)
        named = {
            "conference_id": conference_id,
            "room_code": room_code,
            "schedule_conference_id": schedule_conference_id,
            "running": running or None,
        }
        if conference_id is _NOT_GIVEN:
            del named["conference_id"]
            conference_id = None
            if not any(value is not None for value in named.values()):
                raise InvalidInputError(f"conference_id: it is missing; give it or {', '.join(named)}")
        filters = {"title_pattern": title_pattern, "creator_id": creator_id}
        self._filters = [name for name, value in filters.items() if value is not _NOT_GIVEN]
        idle = [] if running else [name for name in self._filters if filters[name] is not None]
        if idle:
            raise InvalidInputError(f"{', '.join(idle)}: for running meetings only; set running=True")
        self.named_by = given_name(named)
        self.conference_id = conference_id
        self.room_code = room_code
        self.schedule_conference_id = schedule_conference_id
        self.running = running
        self.title_pattern = title_pattern if "title_pattern" in self._filters else None
        self.creator_id = creator_id if "creator_id" in self._filters else None
        self.dingtalk_conn_id = dingtalk_conn_id
        self.on_error = check_on_error(on_error)
        self.max_attempts = max_attempts
        self.max_seconds = max_seconds
        self.concurrency = concurrency
        self.calls_per_second = calls_per_second
        self.deferrable = deferrable
        self._calling = self._killed = False

    @property
    def shown_as(self) -> str:
        """What the UI calls a mapped task of this kind: 250 characters go into Airflow's database."""
        meetings = _ids_in(getattr(self, self.named_by), self.action)
        if _is_collection(meetings):
            return f"{len(meetings)} meetings"
        return str(self.title_pattern or self.creator_id or "" if self.running else meetings)[:250]

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return the operator with all but the mapped parameters: checked now, and named in the UI."""
        kwargs.setdefault("map_index_template", "{{ task.shown_as }}")
        own = kwargs.get("default_args") or {}
        for name in _PARAMETERS & own.keys():  # Airflow takes nothing from there but what every operator has
            kwargs.setdefault(name, own[name])
        made = super().partial(**kwargs)
        outer = [made.kwargs.get(name) for name in ("dag", "task_group")]
        given = dict(ChainMap(made.kwargs, *(each.default_args for each in reversed(outer) if each)))
        check_on_error(given.get("on_error"))
        check_limits(given.get("max_attempts", MAX_ATTEMPTS), given.get("max_seconds", MAX_SECONDS))
        check_bulk_limits(
            given.get("concurrency", CONCURRENCY), given.get("calls_per_second", CALLS_PER_SECOND)
        )
        for name in _DEFAULTS.keys() - kwargs.keys():  # Airflow has put a default of its own there
            made.kwargs[name] = made.kwargs.get(name) or _DEFAULTS[name]
        return made

    def execute(self, context: Context) -> LockResult | list[dict[str, Any]]:
        """Make the calls, and give the task the state that belongs to how they ended."""
        return self._act(context)

    def resume(
        self, context: Context, event: Any = None, attempts: int = 0, done: Sequence[dict[str, Any]] = ()
    ) -> LockResult | list[dict[str, Any]]:
        """Make the call again after a wait in the triggerer.

        :param event: what the trigger says; that the wait is over.
        :param attempts: how often the call was tried before.
        :param done: what came of the meetings that need no further call.
        """
        return self._act(context, attempts, done)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a wait in the triggerer, or end in what went wrong there."""
        if next_method != "__fail__" or not self.unlock_on_failure:
            return super().resume_execution(next_method, next_kwargs, context)
        with self._running(context) as (hook, made):
            if self._is_of_many:
                self._settled(context, hook, made, ())
            return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """End the call that is being made; the hook undoes a lock that it may have made.

        :raises SystemExit: a call is being made, and Airflow 3 would let it run on.
        """
        self._killed = True
        if self._calling and AIRFLOW_V_3_0_PLUS:  # Airflow 2 raises what it knows again
            raise SystemExit(f"{self.action} was interrupted")

    def _act(
        self, context: Context, attempts: int = 0, done: Sequence[dict[str, Any]] | None = None
    ) -> LockResult | list[dict[str, Any]]:
        if self.action == "unlock" and _names_nothing(self.conference_id):
            self.log.info("Nothing was locked, so that there is nothing to unlock")
            return {
                "conference_id": None,
                "action": self.action,
                "success": True,
                "attempts": 0,
                "request_id": None,
            }
        with self._running(context, attempts) as (hook, made):
            try:
                self.conference_id = _ids_in(self.conference_id, self.action)
                if self._is_of_many:
                    return self._act_on_many(context, hook, made, attempts, done)
                return self._act_on_one(context, hook, made, attempts)
            except InvalidInputError as error:
                self._end_in(context, hook, error)
                raise

    @property
    def _is_of_many(self) -> bool:
        return self.running or _is_collection(self.conference_id)

    @contextmanager
    def _running(self, context: Context, attempts: int = 0) -> Iterator[tuple[DingTalkConferenceHook, _Made]]:
        """Give what the task works with, and leave nothing behind that it has locked in vain."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        hook = DingTalkConferenceHook(
            self.dingtalk_conn_id,
            max_attempts=self.max_attempts - attempts,
            max_seconds=self.max_seconds,
            max_wait=WORKER_WAIT if self.deferrable else None,
        )
        made = _Made()
        self._killed = False
        try:
            yield hook, made
            if self._killed:  # between two calls
                raise SystemExit(f"{self.action} was interrupted")
        except BaseException as error:
            self._leave_nothing(context, hook, made, error)
            raise
        finally:
            hook.close()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the end of the task end the block, but not what it tells Airflow before and after."""
        self._calling = True
        try:
            yield
        finally:
            self._calling = False

    def _act_on_one(
        self, context: Context, hook: DingTalkConferenceHook, made: _Made, attempts: int
    ) -> LockResult:
        conference, conference_id = None, cast("str | None", self.conference_id)
        try:
            with self._interruptible():
                if self.named_by != "conference_id":
                    conference = hook.get_conference(**{self.named_by: getattr(self, self.named_by) or ""})
                    self.log.info("%s %s is %s", self.named_by, getattr(self, self.named_by), conference)
                    conference_id = conference.conference_id
                result = hook.act(self.action, conference_id)
                made.for_sure.append(cast("str", conference_id))
        except DingTalkError as error:
            error.attempts += attempts
            error.outcome = outcome_of(error, self.on_error)
            if error.uncertain and conference_id:
                made.uncertain.append(conference_id)
            self._end_in(context, hook, error, conference)
            return {
                "conference_id": conference_id,
                "action": self.action,
                "success": False,
                "attempts": error.attempts,
                "request_id": error.request_id,
            }
        self._keep_links(context, hook, None, conference)
        result["attempts"] += attempts
        return result

    def _act_on_many(
        self,
        context: Context,
        hook: DingTalkConferenceHook,
        made: _Made,
        attempts: int,
        done: Sequence[dict[str, Any]] | None,
    ) -> list[dict[str, Any]]:
        """Act on every meeting that an earlier try of the task has not settled."""
        from airflow_provider_dingconf.client.bulk import ConferenceResult

        settled = self._settled(context, hook, made, done)
        progress = cast("Progress", made.progress)

        def is_settled(result: ConferenceResult) -> bool:
            return result.error is None or outcome_of(result.error, self.on_error) is not Outcome.RETRY

        def keep(result: ConferenceResult) -> None:
            made.add(result, settled=is_settled(result))
            if is_settled(result):
                progress.add(result.as_dict())

        cause, todo, new = None, [], []
        try:
            with self._interruptible():
                todo = [conference_id for conference_id in self._ids(hook) if conference_id not in settled]
                self.log.info("%s: %d meetings; done before: %d", self.action, len(todo), len(settled))
                new = hook.act_all(
                    self.action,
                    todo,
                    concurrency=self.concurrency,
                    calls_per_second=self.calls_per_second,
                    on_result=keep,
                )
        except InvalidInputError:
            raise
        except DingTalkError as error:  # no list of the running meetings, or no access token
            cause = error
            new = [ConferenceResult(one, self.action, 0, error.request_id, error) for one in todo]
        finally:
            progress.save()
        results = [*settled.values(), *new]
        told = [one.as_dict() for one in results]
        may_retry = self.deferrable or _tries_are_left(context)
        error = outcome_of_all(results, self.on_error, cause, may_retry=may_retry)
        if results:
            self.log.log(logging.WARNING if error else logging.INFO, "%s", table(results, self.on_error))
        if error is None:
            self._keep_links(context, hook, None)
        else:
            error.attempts = attempts + max([1, *(one.attempts for one in new)])
            if self.do_xcom_push and "ti" in context:  # Airflow takes none from a task that fails
                context["ti"].xcom_push(key="return_value", value=told)
            self._end_in(context, hook, error, done=[one.as_dict() for one in results if is_settled(one)])
        progress.clear()
        return told

    def _settled(
        self,
        context: Context,
        hook: DingTalkConferenceHook,
        made: _Made,
        done: Sequence[dict[str, Any]] | None = None,
    ) -> dict[str, ConferenceResult]:
        """Return what came of the meetings that need no further call, by id."""
        from airflow_provider_dingconf.client.bulk import ConferenceResult
        from airflow_provider_dingconf.progress import progress_of

        made.progress = progress_of(context, hook.settings, resumed=done is not None)
        told = (*made.progress.load(), *(done or ()))
        settled = {one["conference_id"]: ConferenceResult.from_dict(one) for one in told}
        for result in settled.values():
            made.add(result, settled=True)
        return settled

    def _leave_nothing(
        self, context: Context, hook: DingTalkConferenceHook, made: _Made, error: BaseException
    ) -> None:
        """Unlock what the task has locked in vain, and forget what no retry will ask for."""
        from airflow_provider_dingconf.client.sync import termination

        killed = not isinstance(error, (Exception, TaskDeferred, AirflowTaskTimeout))
        may_undo = self.unlock_on_failure or (killed and self.action == "lock" and bool(made.for_sure))
        if not (may_undo or made.progress):
            return
        goes_on = isinstance(error, TaskDeferred) or _tries_are_left(context)
        ended = isinstance(error, (AirflowFailException, AirflowSkipException)) or not goes_on
        undoes = self.unlock_on_failure or (may_undo and not goes_on)
        in_vain = [*made.uncertain, *(made.for_sure if ended or killed else ())]
        with termination() as hold_termination:
            hold_termination()
            if made.progress and (ended or (killed and undoes)):
                made.progress.clear()  # first: what is to be unlocked is not settled, however far that gets
            if undoes and in_vain:
                self.log.warning("Unlocking again what this task has locked, or may have: %d", len(in_vain))
                results = hook.undo_locks(
                    in_vain,
                    quickly=killed,
                    concurrency=self.concurrency,
                    calls_per_second=self.calls_per_second,
                )
                gone = ConferenceClosedError
                left = [one for one in results if one.error and not isinstance(one.error, gone)]
                if left:
                    self.log.error("May be locked still, and is to be unlocked by hand:\n%s", table(left, {}))

    def _ids(self, hook: DingTalkConferenceHook) -> list[str]:
        """Return the meetings' ids: those given, or those of the running ones that are wanted."""
        from airflow_provider_dingconf.client.bulk import check_conference_ids

        if not self.running:
            return check_conference_ids(self.conference_id)
        wanted = {name: getattr(self, name) for name in self._filters}
        for name, value in wanted.items():
            if not value:
                raise InvalidInputError(
                    f"{name}: it has come to be {value!r}, which would take every running meeting; see to it "
                    "that its template or XCom has a value, or leave it out"
                )
        return [one.conference_id for one in hook.running_conferences(**wanted)]

    def _end_in(
        self,
        context: Context,
        hook: DingTalkConferenceHook,
        error: DingTalkError,
        conference: Conference | None = None,
        **more: Any,
    ) -> None:
        """Give the task the state that belongs to an error, now or after a wait in the triggerer."""
        self._keep_links(context, hook, error, conference)
        self._defer_the_wait(error, **more)
        if not isinstance(error, ConferencesError):  # the table has said it
            self.log.warning("%s", error)
        apply_outcome(error, {})

    def _keep_links(
        self,
        context: Context,
        hook: DingTalkConferenceHook,
        error: DingTalkError | None,
        conference: Conference | None = None,
    ) -> None:
        if isinstance(error, InvalidInputError):
            return  # no call was made
        join_url = conference.join_url if conference else None
        keep_links(self, context, links_for(hook.settings.base_url, LOCK_PAGE, error, join_url))

    def _defer_the_wait(self, error: DingTalkError, **more: Any) -> None:
        """Leave the worker for a long wait, if the call is to be tried again after it."""
        wait = error.retry_after or 0.0
        if (
            self.deferrable
            and WORKER_WAIT < wait <= TRIGGERER_WAIT
            and error.attempts < self.max_attempts
            and error.outcome is Outcome.RETRY
        ):
            from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger

            self.log.info("%s; waiting %.0f s in the triggerer", error.summary, wait)
            self.defer(
                trigger=TimeDeltaTrigger(timedelta(seconds=wait)),
                method_name="resume",
                kwargs={"attempts": error.attempts, **more},
            )


@dataclass
class _Made:
    """What a task has locked, and may have locked; and where it keeps what is settled of many meetings.

    What may have been locked and is to be tried again is in doubt; what may have been and is settled, is not.
    """

    for_sure: list[str] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)
    progress: Progress | None = None

    def add(self, result: ConferenceResult, *, settled: bool) -> None:
        if result.error is None or result.error.uncertain:
            (self.for_sure if settled else self.uncertain).append(result.conference_id)


class LockConferenceOperator(_ConferenceOperator):
    """Lock a DingTalk video meeting: no one can join it any more.

    .. code-block:: python

        lock = LockConferenceOperator(task_id="lock", conference_id="{{ params.conference_id }}")

    The task's XCom is a dict of ``conference_id``, ``action``, ``success``, ``attempts`` and ``request_id``.
    What becomes of the task when DingTalk refuses is a matter of the error code: see
    :data:`~airflow_provider_dingconf.dingtalk.error_codes.ERRORS`.
    Source: `Lock a meeting <https://help.dingtalk.io/open/development/api-lockconference>`__.

    Of the first four parameters exactly one is given. With a list, or with ``running``, the XCom is a list of
    such dicts, each with an ``error``; every meeting is tried, the task's state is the worst of theirs, and a
    retry of the task asks only for what is not yet settled.

    :param conference_id: the meeting's conferenceId, or a list of them; the XCom of another such task will do
        as well. (templated)
    :param room_code: the meeting's room code, with or without spaces and dashes: of its meetings, the one
        that is running. (templated)
    :param schedule_conference_id: the schedule's scheduleConferenceId: of its meetings, the one that is
        running. (templated)
    :param running: every running meeting of the organisation.
    :param title_pattern: with ``running``, a regular expression to be found in the title, such as ``^Exam``.
        (templated)
    :param creator_id: with ``running``, the unionId of the creator. (templated)
    :param concurrency: of many meetings, how many at a time.
    :param calls_per_second: for many meetings, at most so many calls a second.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code, in place of the defaults, such as ``{"confClosed": "fail"}``.
    :param max_attempts: attempts of the call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of the call in all, the waits between attempts included; for a deferrable
        task, those in a worker slot.
    :param unlock_on_failure: whether a task that fails, is skipped or is ended unlocks what it has locked:
        as in :func:`conference_lock`, whose unlock does not run then. One that is ended, and that has no try
        left, does so in any case.
    :param deferrable: whether a long wait is left to the triggerer; the call is made in the worker.
        Airflow's ``[operators] default_deferrable`` by default.
    :param retry_policy: Airflow 3.3's; :class:`~airflow_provider_dingconf.retry_policies.DingTalkRetryPolicy`
        by default, so that a throttled or banned call is retried when DingTalk said.
    :raises InvalidInputError: ``on_error`` or a limit is wrong; when the DAG is parsed.
    :raises AirflowFailException: the outcome of the error is FAIL.
    :raises AirflowSkipException: the outcome of the error is SKIP.
    :raises DingTalkError: the outcome of the error is RETRY.
    """

    action = "lock"

    def __init__(self, *, unlock_on_failure: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unlock_on_failure = unlock_on_failure


class UnlockConferenceOperator(_ConferenceOperator):
    """Unlock a DingTalk video meeting: people can join it again.

    Parameters, XCom and errors are those of :class:`LockConferenceOperator`.
    """

    action = "unlock"


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
    the work succeeds or fails, and clearing the work clears both. The DAG run fails when the work fails, and
    when the unlock does; for the latter there is an empty task ``<unlock>_done``, which needs no worker.

    Where the lock fails or is skipped, Airflow runs neither the work nor the unlock: it unlocks what it has
    locked itself. The unlock takes the meetings that the lock has locked: a room code may stand for another
    one by then.

    :param conference_id: the meeting's conferenceId, or a list of them. (templated)
    :param name: makes the tasks' ids, ``lock_<name>`` and ``unlock_<name>``.
    :param group_id: puts the section into a task group of this id; None for no group.
    :param kwargs: any other parameter of the two operators.
    """
    with TaskGroup(group_id) if group_id else nullcontext():
        if conference_id is not None:
            kwargs["conference_id"] = conference_id
        lock = LockConferenceOperator(task_id=f"lock_{name}", unlock_on_failure=True, **kwargs)
        if lock.named_by != "conference_id":
            for named in ("room_code", "schedule_conference_id", "running", "title_pattern", "creator_id"):
                kwargs.pop(named, None)
            kwargs["conference_id"] = lock.output
        unlock = UnlockConferenceOperator(task_id=f"unlock_{name}", **kwargs)
        with unlock.as_teardown(setups=lock):
            yield LockedSection(lock, unlock)
    # Not on_failure_fail_dagrun: the unlock would then be the only end that counts, and a run whose work
    # failed would be a success. In the root group, for what follows the section is to wait for the work.
    unlock >> _empty_operator()(
        task_id=f"{unlock.task_id}_done", trigger_rule="none_failed", task_group=unlock.dag.task_group
    )


def _is_collection(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _ids_in(value: Any, action: str) -> Any:
    """Return the ids in the XCom of such tasks, or the value where it is none.

    What a lock has not locked is not unlocked.
    """
    if _is_collection(value):
        ids: list[Any] = []
        for one in value:
            if _is_collection(one):  # a mapped task of lists
                ids += _ids_in(one, action)
            elif not isinstance(one, Mapping) or action == "lock" or _may_be_locked(one):
                ids.append(_ids_in(one, action))
        return ids
    return conference_id_in(value)


def _may_be_locked(result: Mapping[str, Any]) -> bool:
    done, error = result.get("success", True), result.get("error") or {}
    return bool(done or error.get("uncertain") or result.get("action") != "lock")


def _names_nothing(value: Any) -> bool:
    """Return whether it is the XCom of a task that succeeded without having found a meeting."""
    return isinstance(value, Mapping) and not (value.get("success", True) or value.get("conference_id"))


def _tries_are_left(context: Context) -> bool:
    ti = context.get("ti")
    return ti is not None and ti.try_number <= (ti.max_tries or 0)


def _empty_operator() -> type[BaseOperator]:
    if TYPE_CHECKING or AIRFLOW_V_3_0_PLUS:
        from airflow.providers.standard.operators.empty import EmptyOperator
    else:
        from airflow.operators.empty import EmptyOperator
    return EmptyOperator  # noqa: AIR312 - the old place is for Airflow 2 alone

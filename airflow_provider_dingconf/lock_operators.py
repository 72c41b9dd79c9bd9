"""``LockConferenceOperator`` and ``UnlockConferenceOperator``: for one meeting, a list, or all that run."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_dingconf.client.bulk import ConferenceResult
from airflow_provider_dingconf.dingtalk.conferences import NAMES, check_given_name
from airflow_provider_dingconf.dingtalk.endpoints import LOCK
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, InvalidInputError
from airflow_provider_dingconf.dingtalk.inputs import digits_of
from airflow_provider_dingconf.dingtalk.limits import CONCURRENCY, check_bulk_limits, check_count
from airflow_provider_dingconf.many import (
    CompletedMeetings,
    check_meetings,
    error_of_all,
    is_collection,
    meetings_in,
    table,
    tries_are_left,
)
from airflow_provider_dingconf.outcomes import Outcome
from airflow_provider_dingconf.roll_back import Try, is_unlocked, log_still_locked, when_airflow_fails
from airflow_provider_dingconf.tasks import CallingTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

_NOT_GIVEN: Any = object()


class ConferenceOperator(CallingTask):
    """The base of the lock and the unlock: finds the meetings, makes the calls and returns the XCom."""

    page: str | None = LOCK.page
    switches = ("running", "dry_run", "unlock_on_failure")
    unlock_on_failure = False

    template_fields: Sequence[str] = (*NAMES, "title_pattern", "creator_id", "dingtalk_conn_id")

    def __init__(
        self,
        *,
        conference_id: str | Iterable[Any] | None = _NOT_GIVEN,
        room_code: str | None = None,
        schedule_conference_id: str | None = None,
        running: bool = False,
        title_pattern: str = _NOT_GIVEN,
        creator_id: str = _NOT_GIVEN,
        max_meetings: int | None = None,
        dry_run: bool = False,
        concurrency: int = CONCURRENCY,
        calls_per_second: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        given = {name: value for name, value in dict(locals()).items() if value is not _NOT_GIVEN}
        self._check(given)
        self.filters: list[str] = [name for name in ("title_pattern", "creator_id") if name in given]
        idle = [name for name in self.filters if given[name] is not None]
        if idle and not running:
            raise InvalidInputError(
                f"{', '.join(idle)}: for running meetings only; set running=True, or give None if the value "
                "comes from default_args"
            )
        named = {name: given.get(name) for name in NAMES} | {"running": running or None}
        self.named_by = check_given_name(named)
        if self.named_by == "conference_id" and "conference_id" not in given:
            raise InvalidInputError(f"conference_id: it is missing; give it or {', '.join([*named][1:])}")
        self.conference_id = given.get("conference_id")
        self.room_code = room_code
        self.schedule_conference_id = schedule_conference_id
        self.running = running
        self.title_pattern = given.get("title_pattern")
        self.creator_id = given.get("creator_id")
        self.max_meetings = max_meetings
        self.only_listed = dry_run  # dry_run is a method of Airflow's operators
        self.concurrency = concurrency
        self.calls_per_second = calls_per_second
        self._ids: list[Any] = []  # of the meetings to lock or unlock
        self._results: list[ConferenceResult] = []  # of the completed meetings; those of earlier tries first

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        super()._check(given)
        check_meetings(given.get("conference_id"))
        check_bulk_limits(given.get("concurrency", CONCURRENCY), given.get("calls_per_second"))
        if given.get("max_meetings") is not None:
            check_count("max_meetings", given["max_meetings"])

    def _shown(self) -> Any:
        if self.running:
            return self.title_pattern or self.creator_id or ""
        meetings = meetings_in(getattr(self, self.named_by), self.action)
        return f"{len(meetings)} meetings" if is_collection(meetings) else meetings

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> Any:
        """Lock or unlock the meetings that no earlier try completed; raise the worst of their errors."""
        self._ids, self._results = [], []
        self.conference_id = given = meetings_in(self.conference_id, self.action)
        self._is_of_many = self.running or is_collection(given)
        if self.action == "unlock" and self.named_by == "conference_id" and given in (None, []):
            self.log.info("Nothing to unlock: no lock has handed on a meeting that is or may be locked")
            return self._xcom_of()
        self._begin(context, hook)
        # A section locks all meetings again at each try, because the failed try has rolled back.
        is_resumed = self._is_of_many and not self.unlock_on_failure
        self._completed = CompletedMeetings(context if is_resumed else {}, hook.settings, self.retries)
        before = self._completed.load()
        self._results = list(before)
        ids: list[Any] = [] if self._is_of_many else [None]
        error: DingTalkError | None = None
        try:
            with self._interruptible(hook):
                self._ids = self._find(hook)
                if self.only_listed:
                    return self._would_act()
                completed = {one.conference_id for one in before}
                ids = [one for one in self._ids if str(one) not in completed]
                new = self._act(hook, ids)
        except InvalidInputError:
            self._ids = []  # nothing was sent
            raise
        except DingTalkError as cause:  # with many meetings: no list of those that run, or no access token
            error = cause
            made = (0, None) if self._is_of_many else (error.attempts, error.request_id)
            new = [ConferenceResult(one, self.action, *made, error) for one in dict.fromkeys(ids)]
        finally:
            self._completed.save()
        self._results = [*before, *new]
        if self._is_of_many:
            worst = error_of_all(self._results, self.on_error, may_retry=tries_are_left(context))
            error = error or worst
            if self._results:
                self.log.log(logging.WARNING if error else logging.INFO, "%s", table(self._results))
        if error is None:
            return self._xcom_of()
        is_for_unlock = self.action == "lock" and self._ids and error.uncertain and not self.unlock_on_failure
        if self.do_xcom_push and (self._is_of_many or is_for_unlock) and "ti" in context:
            # Airflow itself pushes no XCom for a task that fails or is skipped.
            context["ti"].xcom_push(key="return_value", value=self._xcom_of())
        raise error

    def _begin(self, context: Context, hook: DingTalkConferenceHook) -> None:
        """Prepare to undo the work."""

    def _act(self, hook: DingTalkConferenceHook, ids: list[Any]) -> list[ConferenceResult]:
        if self._is_of_many:
            act_on_all = hook.lock_conferences if self.action == "lock" else hook.unlock_conferences
            rate = self.calls_per_second
            return act_on_all(ids, concurrency=self.concurrency, calls_per_second=rate, on_result=self._note)
        act = hook.lock_conference if self.action == "lock" else hook.unlock_conference
        result = act(ids[0])  # noted at once: from here on, an interruption must roll it back
        self._results.append(ConferenceResult(ids[0], self.action, result["attempts"], result["request_id"]))
        return self._results[-1:]

    def _note(self, result: ConferenceResult) -> None:
        """Note the result of one of many meetings: the work on the rest may be interrupted."""
        self._results.append(result)
        if result.error is None or result.error.outcome_with(self.on_error) is not Outcome.RETRY:
            self._completed.add(result)

    def _find(self, hook: DingTalkConferenceHook) -> list[Any]:
        """Return the ids of the meetings: those given, or those that are found."""
        ids: list[Any]
        if self.running:
            # A template without a value renders to "None", which the hook refuses; None would be no filter.
            values = {name: digits_of(getattr(self, name)) for name in self.filters}
            wanted: Any = {name: "None" if value is None else value for name, value in values.items()}
            running = list(hook.running_conferences(**wanted))
            ids = [one.conference_id for one in running]
            if self.only_listed:
                self.log.info("running: %s", ", ".join(map(str, running)) or "none")
        elif self.named_by != "conference_id":
            name = getattr(self, self.named_by)
            conference = hook.get_conference(**{self.named_by: "" if name is None else name})
            self.log.info("%s %s is %s", self.named_by, name, conference)
            self._join_url, ids = conference.join_url, [conference.conference_id]
        else:
            ids = list(cast("Any", self.conference_id)) if self._is_of_many else [self.conference_id]
        most, found = self.max_meetings, len({str(one) for one in ids})
        if most is not None and found > most:
            raise InvalidInputError(
                f"max_meetings: {found} meetings are found, and the task may {self.action} {most}; narrow "
                "title_pattern or creator_id, or raise max_meetings"
            )
        return ids

    def _would_act(self) -> Any:
        """Log which meetings the task would lock or unlock, and return an XCom without any success."""
        ids, self._ids = self._ids, []
        self.log.info(
            "dry_run: would %s %s", self.action, f"{len(ids)} meetings" if self._is_of_many else ids[0]
        )
        self.page = None  # no link to the documentation of a call that is not made
        results = [ConferenceResult(one, self.action, 0) for one in ids]
        xcom = [{**one.as_dict(with_error=self._is_of_many), "success": False} for one in results]
        return xcom if self._is_of_many else xcom[0]

    def _xcom_of(self, _error: DingTalkError | None = None) -> dict[str, Any] | list[dict[str, Any]]:
        if self._is_of_many:
            return [one.as_dict() for one in self._results]
        (one,) = self._results or [ConferenceResult(cast("str", None), self.action, 0)]
        return one.as_dict(with_error=one.error is not None)


class LockConferenceOperator(ConferenceOperator):
    """Lock a DingTalk video meeting: no one can join it any more.

    .. code-block:: python

        lock = LockConferenceOperator(task_id="lock", conference_id="{{ params.conference_id }}")
        unlock = UnlockConferenceOperator(task_id="unlock", conference_id=lock.output)
        lock >> work() >> unlock.as_teardown(setups=lock)

    Without ``as_teardown``, or :func:`~airflow_provider_dingconf.operators.conference_lock`, the meeting
    stays locked if the work fails.

    Give exactly one of the first four parameters. The XCom is a dict of ``conference_id``, ``action``,
    ``success``, ``attempts`` and ``request_id``. If the call failed and ``on_error`` makes that a success, it
    has an ``error`` as well. Source: `Lock a meeting
    <https://help.dingtalk.io/open/development/api-lockconference>`__.

    With a list, or with ``running``, the XCom is a list of such dicts, each with an ``error``. The task
    pushes it even if it fails. The task tries every meeting, and the worst result decides its state. An
    ended meeting counts only if all have ended, or if ``on_error`` names ``confClosed``. On Airflow 3.3 and
    later, a retry only locks the remaining meetings.

    If two runs lock the same meeting, the first one to end unlocks it for both.

    :param conference_id: the meeting's conferenceId, or a list of them; or the XCom of another lock, of a
        sensor, or of a :class:`CreateConferenceOperator`. A template may render them natively or as text.
        (templated)
    :param room_code: the meeting's room code, with or without spaces and dashes. The task locks the meeting
        that is running under it. (templated)
    :param schedule_conference_id: the scheduleConferenceId of a schedule. The task locks its running meeting.
        (templated)
    :param running: True for every running meeting of the organisation. Not a template.
    :param title_pattern: with ``running``, a regular expression that must match somewhere in the title, such
        as ``^Exam``. (templated)
    :param creator_id: with ``running``, the unionId of the creator. (templated)
    :param max_meetings: if the task finds more meetings, it fails before it locks any.
    :param dry_run: log and return which meetings the task would lock, and lock none.
    :param concurrency: with many meetings, the maximum number of calls at a time.
    :param calls_per_second: with many meetings, the maximum number of calls a second; None for the
        connection's.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code or error class, such as ``{"confClosed": "fail"}``. They replace
        the defaults in :data:`~airflow_provider_dingconf.dingtalk.error_codes.ERRORS`.
    :param max_attempts: how often one call is sent at most. These are not Airflow's ``retries``.
    :param max_seconds: the time limit of one call in seconds, including the waits between attempts.
    :param unlock_on_failure: whether a try that fails or is skipped unlocks what it locked; otherwise those
        meetings stay locked.
    :param retry_policy: Airflow 3.3's retry policy, by default
        :class:`~airflow_provider_dingconf.retry_policies.DingTalkRetryPolicy`: Airflow retries a throttled
        or banned call when DingTalk allows it.
    :raises InvalidInputError: a parameter is invalid; raised when the DAG is parsed, unless it is templated.
    :raises AirflowFailException: the outcome of the error is FAIL.
    :raises AirflowSkipException: the outcome of the error is SKIP.
    :raises DingTalkError: the outcome of the error is RETRY.
    """

    action = "lock"

    def __init__(self, *, unlock_on_failure: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._check(locals())
        self.unlock_on_failure = unlock_on_failure

    def _begin(self, context: Context, hook: DingTalkConferenceHook) -> None:
        self._try = Try(context.get("ti"))
        hook._connect().is_superseded = self._try.is_superseded
        if self.unlock_on_failure:
            when_airflow_fails(self, partial(self._roll_back, hook))

    def _clean_up(self, context: Context, hook: DingTalkConferenceHook, raised: BaseException) -> None:
        # In a section, nothing stays locked between tries. Elsewhere, a task keeps its locks for the next
        # try, if there is one.
        is_killed = not isinstance(raised, (Exception, AirflowTaskTimeout))
        if self.unlock_on_failure or (is_killed and not tries_are_left(context)):
            self._roll_back(hook, quickly=is_killed)

    def _roll_back(self, hook: DingTalkConferenceHook, *, quickly: bool = False) -> None:
        done, self._results = self._results, []
        locked = [one.conference_id for one in done if one.error is None or one.error.uncertain]
        if any(locked):  # there is no id if the query of a room code was lost
            self._try.roll_back(hook, locked, quickly=quickly)


class UnlockConferenceOperator(ConferenceOperator):
    """Unlock a DingTalk video meeting: people can join it again.

    ``conference_id`` takes the XCom of a lock, whether or not the lock succeeded. If the lock failed or was
    skipped, there is nothing to unlock, and the task succeeds. If the response to the lock was lost, the task
    unlocks the meeting. A task that fails logs which meetings are still locked, and how to unlock them by
    hand. If somebody marks the run as failed while the task runs, Airflow lets the task end as a success:
    then that line in its log is the only sign of a refused unlock.

    The parameters, the XCom and the errors are those of :class:`LockConferenceOperator`.
    """

    action = "unlock"

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> Any:
        try:
            return super()._call(context, hook)
        finally:  # also if on_error makes a refused unlock a success
            unlocked = {one.conference_id for one in self._results if is_unlocked(one)}
            log_still_locked(one for one in self._ids if str(one) not in unlocked)

"""``LockConferenceOperator`` and ``UnlockConferenceOperator``: of one meeting, of a list, of all that run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_dingconf.dingtalk.conferences import given_name
from airflow_provider_dingconf.dingtalk.endpoints import LOCK
from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceClosedError,
    DingTalkError,
    InvalidInputError,
)
from airflow_provider_dingconf.dingtalk.limits import (
    CALLS_PER_SECOND,
    CONCURRENCY,
    check_bulk_limits,
)
from airflow_provider_dingconf.many import (
    ManyMeetings,
    is_collection,
    meetings_in,
    tries_are_left,
)
from airflow_provider_dingconf.roll_back import RollBack, log_still_locked
from airflow_provider_dingconf.tasks import CallingTask, check_switches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.dingtalk.conferences import Conference
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

_NOT_GIVEN: Any = object()


class ConferenceOperator(CallingTask):
    """What locking and unlocking have in common."""

    unlock_on_failure = False

    template_fields: Sequence[str] = (
        "conference_id",
        "room_code",
        "schedule_conference_id",
        "title_pattern",
        "creator_id",
        "dingtalk_conn_id",
    )

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
        self.check_parameters(locals())
        filters = {"title_pattern": title_pattern, "creator_id": creator_id}
        self.filters = [name for name, value in filters.items() if value is not _NOT_GIVEN]
        idle = [] if running else [name for name in self.filters if filters[name] is not None]
        if idle:
            raise InvalidInputError(f"{', '.join(idle)}: for running meetings only; set running=True")
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
        self.named_by = given_name(named)
        self.conference_id = conference_id
        self.room_code = room_code
        self.schedule_conference_id = schedule_conference_id
        self.running = running
        self.title_pattern = title_pattern if "title_pattern" in self.filters else None
        self.creator_id = creator_id if "creator_id" in self.filters else None
        self.max_meetings = max_meetings
        self.only_listed = dry_run  # dry_run is a method of Airflow's operators
        self.concurrency = concurrency
        self.calls_per_second = calls_per_second

    @classmethod
    def check_parameters(cls, given: Mapping[str, Any]) -> None:
        """Check parameters that no template fills in, when the DAG is parsed."""
        super().check_parameters(given)
        rate = given.get("calls_per_second")
        check_bulk_limits(given.get("concurrency", CONCURRENCY), CALLS_PER_SECOND if rate is None else rate)
        check_switches(given, "running", "dry_run", "unlock_on_failure")
        most = given.get("max_meetings")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise InvalidInputError(f"max_meetings: {most!r} is not a whole number of at least 1")

    def execute(self, context: Context) -> dict[str, Any] | list[dict[str, Any]]:
        """Lock or unlock, and give the task the state that belongs to how that ended."""
        self._killed = False
        self.conference_id = meetings = meetings_in(self.conference_id, self.action)
        if self.action == "unlock" and self.named_by == "conference_id" and meetings in (None, []):
            self.log.info("Nothing to unlock: no lock has handed on a meeting that is or may be locked")
            return [] if meetings == [] else self._result(None)
        is_of_many = self.running or is_collection(meetings)
        roll_back: RollBack | None = None
        hook = self.make_hook()
        result: dict[str, Any] | list[dict[str, Any]]
        try:
            if self.action == "lock":
                roll_back = RollBack(context, hook)
            try:
                if is_of_many:
                    result = ManyMeetings(self, hook, context, roll_back).act(meetings)
                else:
                    result = self._act_on_one(context, hook, meetings, roll_back)
            except InvalidInputError as error:
                self.end_in(error)
                result = [] if is_of_many else self._result(None)
            if self._killed:  # between two calls
                raise SystemExit(f"{self.action} was interrupted")
        except BaseException as error:
            # A section keeps nothing for its next try; another task does, and gives up if there is none.
            killed = not isinstance(error, (Exception, AirflowTaskTimeout))
            if roll_back and (self.unlock_on_failure or (killed and not tries_are_left(context))):
                roll_back.now(hook, quickly=killed)
            raise
        finally:
            hook.close()
        if roll_back and self.unlock_on_failure:
            roll_back.if_airflow_fails(self)
        return result

    # One meeting

    def _act_on_one(
        self, context: Context, hook: DingTalkConferenceHook, meeting: Any, roll_back: RollBack | None
    ) -> dict[str, Any]:
        conference: Conference | None = None
        error: DingTalkError | None = None
        base_url = hook.settings.base_url  # read here: what Airflow is asked for is not to be interrupted
        try:
            self._calling = True
            if self.named_by != "conference_id":
                name = getattr(self, self.named_by)
                conference = hook.get_conference(**{self.named_by: "" if name is None else name})
                self.log.info("%s %s is %s", self.named_by, name, conference)
                meeting = conference.conference_id
            if self.only_listed:
                self.log.info("dry_run: would %s %s", self.action, conference or meeting)
                return self._result(meeting) | {"success": False}
            act = hook.lock_conference if self.action == "lock" else hook.unlock_conference
            result = cast("dict[str, Any]", act(meeting))
            if roll_back:
                roll_back.meetings.append(meeting)
        except InvalidInputError:
            raise
        except DingTalkError as failed:
            error, result = failed, self._result(meeting, failed)
            if roll_back and meeting and error.uncertain:
                roll_back.meetings.append(meeting)
        except BaseException:
            if self.action == "unlock" and meeting:
                log_still_locked([meeting])
            raise
        finally:
            self._calling = False
        self.keep_links(context, base_url, LOCK.page, error, conference.join_url if conference else None)
        if error:
            self._end_one_in(error, context, result)
        return result

    def _end_one_in(self, error: DingTalkError, context: Context, result: dict[str, Any]) -> None:
        """Give the task the state that belongs to an error; return if that is success."""
        meeting = result["conference_id"]
        try:
            self.end_in(error)
        except BaseException:
            if meeting and self.action == "unlock" and not isinstance(error, ConferenceClosedError):
                log_still_locked([meeting])
            if meeting and self.action == "lock" and error.uncertain and not self.unlock_on_failure:
                self.push_anyway(context, result)  # for the unlock
            raise

    def _result(self, meeting: str | None, error: DingTalkError | None = None) -> dict[str, Any]:
        """Return the XCom of a task that has locked or unlocked nothing."""
        from airflow_provider_dingconf.client.bulk import ConferenceResult

        attempts, request_id = (error.attempts, error.request_id) if error else (0, None)
        result = ConferenceResult(cast("str", meeting), self.action, attempts, request_id, error)
        return result.as_dict(with_error=error is not None)

    def shown_meeting(self) -> str:
        """Return a name of the meeting, or meetings, of the task."""
        if self.running:
            return str(self.title_pattern or self.creator_id or "")
        meetings = meetings_in(getattr(self, self.named_by), self.action)
        return f"{len(meetings)} meetings" if is_collection(meetings) else str(meetings)


class LockConferenceOperator(ConferenceOperator):
    """Lock a DingTalk video meeting: no one can join it any more.

    .. code-block:: python

        lock = LockConferenceOperator(task_id="lock", conference_id="{{ params.conference_id }}")
        unlock = UnlockConferenceOperator(task_id="unlock", conference_id=lock.output)
        lock >> work() >> unlock.as_teardown(setups=lock)

    Without ``as_teardown``, or :func:`~airflow_provider_dingconf.operators.conference_lock`, the meeting
    stays locked if the work fails.

    The XCom is a dict of ``conference_id``, ``action``, ``success``, ``attempts`` and ``request_id``, and of
    ``error`` if the call failed and ``on_error`` makes that a success. The error code decides what a refusal
    makes of the task: see :data:`~airflow_provider_dingconf.dingtalk.error_codes.ERRORS`.
    Source: `Lock a meeting <https://help.dingtalk.io/open/development/api-lockconference>`__.

    Of the first four parameters exactly one is given. With a list, or with ``running``, the XCom is a list of
    such dicts, each with an ``error``, also if the task fails. Every meeting is tried and the task's state is
    the worst of theirs; an ended meeting only counts if all have ended, or ``on_error`` names ``confClosed``.
    On Airflow 3.3 and later a retry asks only for the meetings that are not completed.

    Outside :func:`~airflow_provider_dingconf.operators.conference_lock`, a failed or skipped task keeps the
    meetings it has locked. Two runs that lock the same meeting do not know of each other: the first to end
    unlocks it for the other.

    :param conference_id: the meeting's conferenceId, or a list of them; also the XCom of another such task or
        of a sensor. (templated)
    :param room_code: the meeting's room code, with or without spaces and dashes: of its meetings, the one
        that is running. (templated)
    :param schedule_conference_id: the schedule's scheduleConferenceId: of its meetings, the one that is
        running. (templated)
    :param running: True for every running meeting of the organisation. Not a template.
    :param title_pattern: with ``running``, a regular expression to be found in the title, such as ``^Exam``.
        (templated)
    :param creator_id: with ``running``, the unionId of the creator. (templated)
    :param max_meetings: if more meetings are found, the task fails before it locks any.
    :param dry_run: log and return which meetings would be locked, and lock none.
    :param concurrency: of many meetings, the number at a time.
    :param calls_per_second: for many meetings, the number of calls a second; None for the connection's.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code or error class, in place of the defaults, such as
        ``{"confClosed": "fail"}``.
    :param max_attempts: attempts of one call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of one call in all, the waits between attempts included.
    :param unlock_on_failure: whether a try that fails or is skipped unlocks what it has locked.
    :param retry_policy: Airflow 3.3's; :class:`~airflow_provider_dingconf.retry_policies.DingTalkRetryPolicy`
        by default: Airflow retries a throttled or banned call when DingTalk allows it.
    :raises InvalidInputError: a parameter is wrong; when the DAG is parsed.
    :raises AirflowFailException: the outcome of the error is FAIL.
    :raises AirflowSkipException: the outcome of the error is SKIP.
    :raises DingTalkError: the outcome of the error is RETRY.
    """

    action = "lock"

    def __init__(self, *, unlock_on_failure: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_parameters({"unlock_on_failure": unlock_on_failure})
        self.unlock_on_failure = unlock_on_failure


class UnlockConferenceOperator(ConferenceOperator):
    """Unlock a DingTalk video meeting: people can join it again.

    ``conference_id`` takes the XCom of a lock, whether or not the lock succeeded. If the lock failed, was
    skipped or was refused, there is nothing to unlock, and the task succeeds. A meeting whose lock lost its
    response is unlocked. A task that fails logs which meetings are still locked, and how to unlock them by
    hand. If the run is marked as failed meanwhile, Airflow lets the task end as a success: that error in its
    log then is the only sign of a refused unlock.

    Parameters, XCom and errors are those of :class:`LockConferenceOperator`.
    """

    action = "unlock"

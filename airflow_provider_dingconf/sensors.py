"""``ConferenceSensor``: wait until a meeting starts or ends."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_dingconf.dingtalk.conferences import (
    NAMES,
    ConferenceStatus,
    check_given_name,
    check_reference,
    conference_id_in,
    page_of,
    reached,
    started_of,
)
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, InvalidInputError
from airflow_provider_dingconf.dingtalk.limits import is_number
from airflow_provider_dingconf.links import keep_links
from airflow_provider_dingconf.outcomes import Outcome, check_on_error
from airflow_provider_dingconf.tasks import DingTalkTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.dingtalk.conferences import Conference, Reference

LONGEST_DELAY = 365 * 86_400  # seconds; more is a mistake, and too much for a datetime
LONGEST_TIMEOUT = 100 * LONGEST_DELAY  # in the triggerer; Airflow adds it to the date of today


class ConferenceSensor(DingTalkTask, BaseSensorOperator):
    """Wait until a meeting has started, or has ended.

    .. code-block:: python

        started = ConferenceSensor(
            task_id="started", room_code="123 456 789", delay=timedelta(minutes=5), deferrable=True
        )
        LockConferenceOperator(task_id="lock", conference_id=started.output)

    Each poke is one call, and counts against DingTalk's monthly quota. With ``deferrable``, the tasks that
    wait by conference id with one connection and interval share their calls: one call is enough for a hundred
    meetings. The wait goes on after a transient error, and after an error for which ``on_error`` says
    ``retry``. Any other error leads to a task state as in the operators. If the sensor waits for the start
    and the meeting has ended, the error is ``confClosed``.

    The XCom is a dict that describes the meeting: ``conference_id``, ``title``, ``status``, ``room_code``,
    ``start_time`` and ``end_time`` in ISO 8601, ``creator_id``, ``creator_nick``, ``join_url``,
    ``schedule_conference_id``, ``biz_type``. A value that DingTalk does not give is None. Source: `Query a
    meeting <https://help.dingtalk.io/open/development/querying-video-conference-information>`__ and the pages
    beside it.

    Give exactly one of the first three parameters.

    :param conference_id: the meeting's conferenceId; or the XCom of a lock, of another sensor, or of a
        ``CreateConferenceOperator``. (templated)
    :param room_code: the room code. The sensor waits until a meeting runs under it. (templated)
    :param schedule_conference_id: the scheduleConferenceId of a schedule. The sensor waits until one of its
        meetings runs. (templated)
    :param status: ``started`` or ``ended``; ``ended`` needs a ``conference_id``.
    :param delay: a timedelta, or seconds; a year at most. The wait ends that long after the start of the
        meeting, even if the meeting ends before. The sensor makes no call during the delay. In mode
        ``reschedule``, it makes one at the end of the delay, and finds ``confClosed`` if the meeting has
        ended.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code or error class, as in the operators.
    :param poke_interval: seconds between two pokes; more if DingTalk asks for a longer wait.
    :param timeout: Airflow's timeout in seconds, including the delay. With ``deferrable``, it counts only the
        time in the triggerer, and starts again with each try.
    :param deferrable: whether to wait in the triggerer; by default as Airflow's
        ``[operators] default_deferrable`` says.
    :raises InvalidInputError: a parameter is invalid, or two contradict each other; raised when the DAG is
        parsed, unless it is templated.
    """

    template_fields: Sequence[str] = (*NAMES, "dingtalk_conn_id")
    switches = ("deferrable",)
    ui_color = "#d6e4ff"

    def __init__(
        self,
        *,
        conference_id: str | dict[str, Any] | None = None,
        room_code: str | int | None = None,
        schedule_conference_id: str | None = None,
        status: str = "started",
        delay: timedelta | float = 0,
        dingtalk_conn_id: str = "dingtalk_default",
        on_error: Mapping[str, Outcome | str] | None = None,
        poke_interval: float = 60,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.conference_id = conference_id
        self.room_code = room_code
        self.schedule_conference_id = schedule_conference_id
        self.status = status
        self.dingtalk_conn_id = dingtalk_conn_id
        self.deferrable = deferrable
        self._check(locals())
        self.named_by = check_given_name({name: getattr(self, name) for name in NAMES})
        if getattr(self, self.named_by) is None:
            raise InvalidInputError(f"no meeting is given; give one of {', '.join(NAMES)}")
        self.delay = delay.total_seconds() if isinstance(delay, timedelta) else delay
        self.on_error = check_on_error(on_error)
        self._asked = 0.0  # seconds that DingTalk asked to wait
        self._seen: Conference | None = None
        self._started: tuple[Conference, datetime] | None = None  # and the end of the wait
        self._base_url: str | None = None
        self._page: str | None = None

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        super()._check(given)
        status, delay = given.get("status", "started"), given.get("delay", 0)
        named_by = check_given_name({name: given.get(name) for name in NAMES})
        if status not in ("started", "ended"):
            raise InvalidInputError(f"status: {status!r} is not 'started' or 'ended'")
        if status == "ended" and named_by != "conference_id":
            raise InvalidInputError(
                f"status: 'ended' needs a conference_id, since a {named_by} stands for several meetings; "
                "give the conference_id of one"
            )
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if not (is_number(seconds) and 0 <= seconds <= LONGEST_DELAY):
            raise InvalidInputError(
                f"delay: {delay!r} is not a timedelta or a number of seconds, at least 0 and at most a year"
            )
        if seconds and status == "ended":
            raise InvalidInputError(f"delay: {delay!r} counts from the start; it needs status='started'")

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Query the meeting once, unless it is known to have started."""
        if self._started is None:
            self._asked, self._seen = 0.0, None
            try:
                found = self._query()
                is_over = found is not None and reached(found, ConferenceStatus(self.status))
            except DingTalkError as error:
                if error.outcome_with(self.on_error) is Outcome.RETRY:
                    self._asked = error.retry_after or 0.0
                    self.log.warning("%s; the next poke queries again", error.summary)
                    return False
                keep_links(self, context, self._base_url, self._page, error)
                self.end_in(error)
                return True
            self._seen = found
            if found is None or not is_over:
                return False
            keep_links(self, context, self._base_url, self._page, join_url=found.join_url)
            start = found.start_time or datetime.now(timezone.utc)
            self._started = found, start + timedelta(seconds=self.delay)
            if found.start_time is None and self.reschedule and not self.deferrable:
                time.sleep(self.delay)  # a rescheduled task would not remember when it saw the start
        conference, end = self._started
        if self.delay and datetime.now(timezone.utc) < end:
            self.log.info("%s has started; the wait ends at %s", conference.conference_id, end.isoformat())
            return False
        self._started = None
        return PokeReturnValue(True, conference.as_dict())

    def _get_next_poke_interval(self, started_at: Any, run_duration: Any, poke_count: int) -> float:
        """Return Airflow's interval, the wait that DingTalk asks for, or the rest of the delay."""
        if self.deferrable:  # there is no next poke: the wait goes on in the triggerer
            self._defer()
        left: float = self.timeout - run_duration()
        if self._started:
            delayed: float = (self._started[1] - datetime.now(timezone.utc)).total_seconds()
            return max(min(delayed, left), 0.0)
        usual: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        return max(usual, min(self._asked, left))

    def _defer(self) -> None:
        from airflow_provider_dingconf.triggers import ConferenceTrigger

        reference = self._reference()
        self.defer(
            timeout=timedelta(seconds=min(self.timeout, LONGEST_TIMEOUT)),
            trigger=ConferenceTrigger(
                self.status,
                {reference.name: reference.value},
                self.dingtalk_conn_id,
                self.poke_interval,
                self._seen.status.value if self._seen else None,
                on_error={code: outcome.value for code, outcome in self.on_error.items()} or None,
                delay=self.delay,
                found=self._started[0].as_dict() if self._started else None,
            ),
            method_name="resume",
            kwargs={"base_url": self._base_url, "page": self._page},
        )

    def resume(
        self, context: Context, event: dict[str, Any], base_url: str | None = None, page: str | None = None
    ) -> Any:
        """End in the task state that the trigger's event leads to.

        :param base_url: of the call before the wait, for the task's links, as ``page``.
        """
        error = DingTalkError.from_dict(event["error"]) if "error" in event else None
        found = event.get("conference")
        keep_links(self, context, base_url, page, error, join_url=found and found["join_url"])
        if error is not None:
            self.end_in(error)
        return found

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the wait; respect ``soft_fail`` and ``never_fail`` on every Airflow."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException:
            raise
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def _reference(self) -> Reference:
        value = conference_id_in(getattr(self, self.named_by))
        return check_reference(**{self.named_by: "" if value is None else value})

    def _query(self) -> Conference | None:
        """Return the meeting; None if no meeting is running under the room code or schedule."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        reference = self._reference()
        with closing(DingTalkConferenceHook(self.dingtalk_conn_id, max_attempts=1)) as hook:
            self._base_url, self._page = hook.settings.base_url, page_of(reference)
            if reference.name == "conference_id":
                conference: Conference | None = hook.get_conference(reference.value)
            else:
                found = hook.find_conferences(**{reference.name: reference.value})
                conference = started_of(found, reference)
        now = conference or "no meeting is running"
        self.log.info("waiting until %s %s has %s: %s", reference.name, reference.value, self.status, now)
        return conference

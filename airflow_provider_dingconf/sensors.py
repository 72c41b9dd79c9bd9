"""``ConferenceSensor``: wait until a meeting starts or ends."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator, PokeReturnValue, conf

from airflow_provider_dingconf.dingtalk.conferences import (
    ConferenceStatus,
    check_reference,
    given_name,
    reached,
    started_of,
)
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, InvalidInputError
from airflow_provider_dingconf.outcomes import Outcome, apply_outcome, check_on_error, outcome_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.dingtalk.conferences import Conference
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook


class ConferenceSensor(BaseSensorOperator):
    """Wait until a meeting has started, or has ended.

    .. code-block:: python

        started = ConferenceSensor(task_id="started", room_code="123 456 789", deferrable=True)
        LockConferenceOperator(task_id="lock", conference_id=started.output)

    Each poke is a call, or up to five where DingTalk has a fault, and counts against DingTalk's monthly
    quota: a task that waits an hour at the default interval makes 60. With ``deferrable``, the waiting tasks
    of one connection and interval share theirs: a hundred meetings are one call. A poke that meets a fault
    that passes is made again an interval later; any other error becomes a task state as in the operators. A
    start that is waited for in vain, since the meeting has ended already, is ``confClosed``.

    The XCom is the meeting, a dict: ``conference_id``, ``title``, ``status``, ``room_code``, ``start_time``
    and ``end_time`` in ISO 8601, ``creator_id``, ``creator_nick``, ``join_url``, ``schedule_conference_id``,
    ``biz_type``. Where the shared polls found it, all but the first three and ``start_time`` are None.
    Source: `Query a meeting <https://help.dingtalk.io/open/development/api-queryconferenceinfo>`__ and the
    pages beside it.

    :param conference_id: the meeting's conferenceId. (templated)
    :param room_code: the meeting's room code, in place of the conferenceId: until one of its meetings runs.
        (templated)
    :param schedule_conference_id: the schedule's scheduleConferenceId, likewise. (templated)
    :param status: ``started`` or ``ended``; for the latter, only a ``conference_id`` says which meeting.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code, as in the operators.
    :param poke_interval: seconds between two polls.
    :param deferrable: whether to wait in the triggerer; Airflow's ``[operators] default_deferrable`` by
        default.
    :raises InvalidInputError: the parameters contradict each other; when the DAG is parsed.
    """

    template_fields: Sequence[str] = (
        "conference_id",
        "room_code",
        "schedule_conference_id",
        "dingtalk_conn_id",
    )
    ui_color = "#d6e4ff"

    def __init__(
        self,
        *,
        conference_id: str | None = None,
        room_code: str | None = None,
        schedule_conference_id: str | None = None,
        status: str = "started",
        dingtalk_conn_id: str = "dingtalk_default",
        on_error: Mapping[str, Outcome | str] | None = None,
        poke_interval: float = 60,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        named = {
            "conference_id": conference_id,
            "room_code": room_code,
            "schedule_conference_id": schedule_conference_id,
        }
        self.named_by = given_name(named)
        if status not in ("started", "ended"):
            raise InvalidInputError(f"status: {status!r} is not 'started' or 'ended'")
        if status == "ended" and self.named_by != "conference_id":
            raise InvalidInputError(
                f"status: a {self.named_by} stands for several meetings; to wait for the end of one, give "
                "its conference_id"
            )
        self.conference_id = conference_id
        self.room_code = room_code
        self.schedule_conference_id = schedule_conference_id
        self.status = status
        self.dingtalk_conn_id = dingtalk_conn_id
        self.on_error = check_on_error(on_error)
        self.deferrable = deferrable
        self._last: Conference | None = None

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Ask DingTalk once."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        hook = DingTalkConferenceHook(self.dingtalk_conn_id)
        try:
            conference = self._reached(hook)
        except DingTalkError as error:
            if outcome_of(error, self.on_error) is Outcome.RETRY:
                self.log.warning("%s; asked again in %g s", error.summary, self.poke_interval)
                return False
            self._ended_in(error)
            return True
        finally:
            hook.close()
        return PokeReturnValue(conference is not None, conference and conference.as_dict())

    def execute(self, context: Context) -> Any:
        """Wait; with ``deferrable``, in the triggerer, unless it is so far already."""
        if not self.deferrable:
            return super().execute(context)
        done = self.poke(context)
        if done:
            return done.xcom_value if isinstance(done, PokeReturnValue) else None
        from airflow_provider_dingconf.triggers import ConferenceTrigger

        self.defer(
            timeout=timedelta(seconds=self.timeout),
            trigger=ConferenceTrigger(
                self.status,
                {self.named_by: getattr(self, self.named_by)},
                self.dingtalk_conn_id,
                self.poke_interval,
                self._last.status.value if self._last else None,
            ),
            method_name="resume",
        )
        return None

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        """Give the task the state that belongs to what the trigger says.

        :param event: the trigger's.
        """
        if "error" in event:
            self._ended_in(DingTalkError.from_dict(event["error"]))
            return None
        return event["conference"]

    def _reached(self, hook: DingTalkConferenceHook) -> Conference | None:
        """Return the meeting once it is as it should be."""
        named = {self.named_by: getattr(self, self.named_by) or ""}
        reference = check_reference(**named)
        if self.named_by != "conference_id":
            return started_of(hook.find_conferences(**named), reference)
        self._last = hook.get_conference(reference.value)
        self.log.info("%s", self._last)
        return self._last if reached(self._last, ConferenceStatus(self.status)) else None

    def _ended_in(self, error: DingTalkError) -> None:
        self.log.warning("%s", error)
        apply_outcome(error, self.on_error)

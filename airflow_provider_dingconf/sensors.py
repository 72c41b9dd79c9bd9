"""``ConferenceSensor``: wait until a meeting starts or ends."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_dingconf.dingtalk.conferences import (
    ConferenceStatus,
    check_reference,
    conference_id_in,
    given_name,
    page_of,
    reached,
    started_of,
)
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, InvalidInputError
from airflow_provider_dingconf.links import (
    CallDocumentationLink,
    ErrorDocumentationLink,
    JoinConferenceLink,
    keep_links,
    links_for,
)
from airflow_provider_dingconf.outcomes import Outcome, apply_outcome, check_on_error, outcome_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.dingtalk.conferences import Conference, Reference
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook


class ConferenceSensor(BaseSensorOperator):
    """Wait until a meeting has started, or has ended.

    .. code-block:: python

        started = ConferenceSensor(task_id="started", room_code="123 456 789", deferrable=True)
        LockConferenceOperator(task_id="lock", conference_id=started.output)

    Each poke is one call, and counts against DingTalk's monthly quota: a task that waits an hour at the
    default interval makes 60. With ``deferrable``, the waiting tasks of one connection and interval share
    theirs: a hundred meetings are one call. A fault that passes is waited out, and so is what ``on_error``
    makes a ``retry``; any other error becomes a task state as in the operators. A start that is waited for
    in vain, since the meeting has ended already, is ``confClosed``.

    The XCom is the meeting, a dict: ``conference_id``, ``title``, ``status``, ``room_code``, ``start_time``
    and ``end_time`` in ISO 8601, ``creator_id``, ``creator_nick``, ``join_url``, ``schedule_conference_id``,
    ``biz_type``; None is what DingTalk does not tell.
    Source: `Query a meeting
    <https://help.dingtalk.io/open/development/querying-video-conference-information>`__ and the pages
    beside it.

    :param conference_id: the meeting's conferenceId, or the XCom of another such task, or of a lock.
        (templated)
    :param room_code: the meeting's room code, in place of the conferenceId: until one of its meetings runs.
        (templated)
    :param schedule_conference_id: the schedule's scheduleConferenceId, likewise. (templated)
    :param status: ``started`` or ``ended``; for the latter, only a ``conference_id`` says which meeting.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code, as in the operators.
    :param poke_interval: seconds between two polls; longer where DingTalk asks to wait.
    :param timeout: Airflow's; of a deferrable sensor, the seconds in the triggerer, in each try of the task.
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
    operator_extra_links = (CallDocumentationLink(), ErrorDocumentationLink(), JoinConferenceLink())

    def __init__(
        self,
        *,
        conference_id: str | dict[str, Any] | None = None,
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
        self._wait = 0.0
        self._base_url: str | None = None
        self._page: str | None = None

    @property
    def shown_as(self) -> str:
        """What the UI calls a mapped task of this kind: 250 characters go into Airflow's database."""
        return str(conference_id_in(getattr(self, self.named_by)))[:250]

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return the sensor with all but the mapped parameters, named in the UI."""
        kwargs.setdefault("map_index_template", "{{ task.shown_as }}")
        return super().partial(**kwargs)

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask DingTalk once."""
        return self._poke(context)[0]

    def execute(self, context: Context) -> Any:
        """Wait; with ``deferrable``, in the triggerer, unless it is so far already."""
        if not self.deferrable:
            return super().execute(context)
        done, seen = self._first_poke(context)
        if done:
            return done.xcom_value
        from airflow_provider_dingconf.triggers import ConferenceTrigger

        reference = self._reference()
        self.defer(
            timeout=timedelta(seconds=self.timeout),
            trigger=ConferenceTrigger(
                self.status,
                {reference.name: reference.value},
                self.dingtalk_conn_id,
                self.poke_interval,
                seen.status.value if seen else None,
                on_error={code: outcome.value for code, outcome in self.on_error.items()} or None,
            ),
            method_name="resume",
            kwargs={"base_url": self._base_url, "page": page_of(reference)},
        )
        return None

    def resume(
        self, context: Context, event: dict[str, Any], base_url: str | None = None, page: str | None = None
    ) -> Any:
        """Give the task the state that belongs to what the trigger says.

        :param event: the trigger's.
        :param base_url: the host that was called.
        :param page: the name of the call's page.
        """
        self._base_url, self._page = base_url, page
        if "error" in event:
            self._ended_in(context, DingTalkError.from_dict(event["error"]))
            return None
        self._keep_links(context, None, event["conference"]["join_url"])
        return event["conference"]

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait; ``soft_fail`` and ``never_fail`` are heeded on every Airflow."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException:
            raise
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def _first_poke(self, context: Context) -> tuple[PokeReturnValue, Conference | None]:
        """Poke before a wait in the triggerer, and heed an error of Airflow's as its sensors do."""
        try:
            return self._poke(context)
        except (AirflowFailException, AirflowSkipException):
            raise
        except Exception as error:
            if self.silent_fail:
                self.log.exception("The first poke failed; the wait begins all the same")
                return PokeReturnValue(False), None
            if self.never_fail:
                raise AirflowSkipException("The first poke failed") from error
            raise

    def _poke(self, context: Context) -> tuple[PokeReturnValue, Conference | None]:
        """Ask DingTalk once, and return how the meeting is besides."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        self._wait = 0.0
        hook = DingTalkConferenceHook(self.dingtalk_conn_id, max_attempts=1)
        try:
            reference = self._reference()
            self._base_url, self._page = hook.settings.base_url, page_of(reference)
            conference = self._ask(hook, reference)
            done = conference is not None and reached(conference, ConferenceStatus(self.status))
        except DingTalkError as error:
            if outcome_of(error, self.on_error) is Outcome.RETRY:
                self._wait = error.retry_after or 0.0
                self.log.warning("%s; asked again in %g s", error.summary, self.poke_interval)
                return PokeReturnValue(False), None
            self._ended_in(context, error)
            return PokeReturnValue(True), None
        finally:
            hook.close()
        if conference is None or not done:
            return PokeReturnValue(False), conference
        self._keep_links(context, None, conference.join_url)
        return PokeReturnValue(True, conference.as_dict()), conference

    def _reference(self) -> Reference:
        value = getattr(self, self.named_by)
        return check_reference(**{self.named_by: "" if value is None else value})

    def _ask(self, hook: DingTalkConferenceHook, reference: Reference) -> Conference | None:
        """Return the meeting; None where none is running under the name."""
        if reference.name != "conference_id":
            return started_of(hook.find_conferences(**{reference.name: reference.value}), reference)
        conference = hook.get_conference(reference.value)
        self.log.info("%s", conference)
        return conference

    def _get_next_poke_interval(self, started_at: Any, run_duration: Any, poke_count: int) -> float:
        """Return the seconds until the next poke: Airflow's, or what DingTalk asks for, up to the timeout."""
        usual: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        asked: float = min(self._wait, self.timeout - run_duration())
        return max(usual, asked)

    def _ended_in(self, context: Context, error: DingTalkError) -> None:
        """Give the task the state that belongs to an error; ``soft_fail`` is heeded here for all modes."""
        self.log.warning("%s", error)
        self._keep_links(context, error)
        try:
            apply_outcome(error, self.on_error)
        except AirflowFailException as failed:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(failed)) from error
            raise

    def _keep_links(self, context: Context, error: DingTalkError | None, join_url: str | None = None) -> None:
        if isinstance(error, InvalidInputError) or not (self._base_url and self._page):
            return  # no call was made
        keep_links(self, context, links_for(self._base_url, self._page, error, join_url))

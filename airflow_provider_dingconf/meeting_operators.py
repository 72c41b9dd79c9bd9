"""Operators that create a meeting, close it, and list who was there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow_provider_dingconf.compat import mask_secret
from airflow_provider_dingconf.dingtalk.conferences import check_reference
from airflow_provider_dingconf.dingtalk.endpoints import CLOSE, CREATE, LIST_MEMBERS
from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceClosedError,
    DingTalkError,
    InvalidInputError,
    Outcome,
)
from airflow_provider_dingconf.dingtalk.hosting import close_call, create_call
from airflow_provider_dingconf.tasks import CallingTask, check_switches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.dingtalk.calls import Call
    from airflow_provider_dingconf.dingtalk.hosting import CreatedConference
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook


class CreateConferenceOperator(CallingTask):
    """Create a DingTalk video meeting.

    .. code-block:: python

        create = CreateConferenceOperator(
            task_id="create", title="Exam", creator_id="{{ params.creator_id }}"
        )
        announce(create.output["join_url"])

    The XCom is a dict of ``conference_id``, ``room_code``, ``join_url`` and ``title``, and of ``password``
    with ``with_password``; each is an XCom of that key, too. Any of the other operators takes it as its
    ``conference_id``. Source: `Create a meeting
    <https://help.dingtalk.io/open/development/create-a-video-conference>`__.

    A create whose response was lost is not repeated, since it would create a second meeting: the task fails
    without a retry, and the error says what may exist. Airflow does repeat a try whose process was killed,
    after the meeting was created or before: ``retries=0`` keeps it from that. SIGTERM and an execution
    timeout wait for DingTalk's response; a meeting that was created is then closed.

    :param title: DingTalk cuts it after 50 characters and refuses more than 256. (templated)
    :param creator_id: the unionId of the creator, who is the host and alone may close the meeting.
        (templated)
    :param invite: the unionIds of those whom DingTalk invites, colleagues of the creator. (templated)
    :param invite_creator: whether DingTalk invites the creator, too.
    :param with_password: whether the XCom has the meeting's password. Airflow masks it in the logs of this
        task alone: a task that takes it in a template shows it among its rendered fields.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code or error class, in place of the defaults, such as
        ``{"noPermission": "skip"}``.
    :param max_attempts: attempts of the call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of the call in all, the waits between attempts included.
    :param multiple_outputs: Airflow's, True by default.
    :raises InvalidInputError: a parameter that is no template is wrong; when the DAG is parsed.
    :raises AirflowFailException: the outcome of the error is FAIL, or a meeting may have been created.
    :raises AirflowSkipException: the outcome of the error is SKIP.
    :raises DingTalkError: the outcome of the error is RETRY.
    """

    action = "create"
    airflow_defaults: ClassVar[dict[str, Any]] = {**CallingTask.airflow_defaults, "multiple_outputs": True}
    template_fields: Sequence[str] = ("title", "creator_id", "invite", "dingtalk_conn_id")

    def __init__(
        self,
        *,
        title: str,
        creator_id: str,
        invite: Sequence[str] | None = None,
        invite_creator: bool = True,
        with_password: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.check_parameters(locals())
        self.title = title
        self.creator_id = creator_id
        self.invite = invite
        self.invite_creator = invite_creator
        self.with_password = with_password

    @classmethod
    def check_parameters(cls, given: Mapping[str, Any]) -> None:
        """Check parameters that no template fills in, when the DAG is parsed."""
        super().check_parameters(given)
        check_switches(given, "with_password", "invite_creator")

    def execute(self, context: Context) -> dict[str, Any]:
        """Create the meeting, and give the task the state that belongs to how that ended."""
        from airflow_provider_dingconf.client.sync import interruptions_held

        self._killed = False
        base_url: str | None = None
        made: CreatedConference | None = None
        hook = self.make_hook()
        try:
            base_url = hook.settings.base_url
            call = create_call(self.title, self.creator_id, self.invite, invite_creator=self.invite_creator)
            self.log.info("Creating the meeting %r, whose host is %s", self.title, self.creator_id)
            with interruptions_held():  # the response alone says which meeting is to be closed
                made = hook._call(call).content
            if self._killed:
                raise SystemExit("create was interrupted")
        except DingTalkError as error:
            self.keep_links(context, base_url, CREATE.page, error)
            if error.uncertain:
                self._say_what_may_exist(error)
            self.end_in(error)
            return self._result(None) | {"error": error.as_dict()}
        except BaseException:
            if made:
                self._close(hook, made)
            raise
        finally:
            hook.close()
        self.log.info("The meeting %s has the room code %s", made.conference_id, made.room_code)
        self.keep_links(context, base_url, CREATE.page, join_url=made.join_url)
        if made.password and self.with_password:
            mask_secret(made.password)
        return self._result(made)

    def _result(self, made: CreatedConference | None) -> dict[str, Any]:
        names = ["conference_id", "room_code", "join_url", *(["password"] if self.with_password else [])]
        return {name: getattr(made, name, None) for name in names} | {"title": self.title}

    def _say_what_may_exist(self, error: DingTalkError) -> None:
        error.remedy = (  # its outcome is FAIL: the call is not repeatable
            f"A meeting {self.title!r} of {self.creator_id} may exist although the response was lost. Look "
            "for it in DingTalk or with DingTalkConferenceHook().running_conferences(), and close it before "
            "you run this task again."
        )

    def _close(self, hook: DingTalkConferenceHook, made: CreatedConference) -> None:
        """Close a meeting that no later task will know of."""
        self.log.warning("The task was interrupted: closing the meeting %s", made.conference_id)
        try:
            hook._call(close_call(check_reference(made.conference_id), self.creator_id))
        except DingTalkError as error:
            self.log.error("%s is still open, and its host has to end it: %s", made.conference_id, error)

    def shown_meeting(self) -> str:
        """Return the title."""
        return str(self.title)


class CloseConferenceOperator(CallingTask):
    """Close a DingTalk video meeting: it ends for everybody in it.

    A meeting that has ended already counts as closed. The XCom is a dict of ``conference_id``, ``action``,
    ``success``, ``attempts`` and ``request_id``, and of ``error`` if the call failed and ``on_error`` makes
    that a success. Source: `Close a meeting
    <https://help.dingtalk.io/open/development/close-audio-video-conference>`__.

    :param conference_id: the meeting's conferenceId, or the XCom of a :class:`CreateConferenceOperator`, a
        lock or a sensor. If the create failed or was skipped, its XCom is None: there is nothing to close,
        and the task succeeds. (templated)
    :param creator_id: the unionId of the host, who alone may close the meeting. (templated)

    The other parameters, and the errors, are those of :class:`CreateConferenceOperator`.
    """

    action = "close"
    template_fields: Sequence[str] = ("conference_id", "creator_id", "dingtalk_conn_id")

    def __init__(
        self, *, conference_id: str | Mapping[str, Any] | None, creator_id: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.conference_id = conference_id
        self.creator_id = creator_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Close the meeting, and give the task the state that belongs to how that ended."""
        from airflow_provider_dingconf.client.bulk import ConferenceResult
        from airflow_provider_dingconf.client.client import Attempts

        self._killed = False
        base_url: str | None = None
        meeting = _meeting_in(self.conference_id)
        if meeting is None:
            self.log.info("Nothing to close: no meeting was created")
            return ConferenceResult(cast("str", None), self.action, 0).as_dict(with_error=False)
        hook, attempts = self.make_hook(), Attempts()
        try:
            base_url = hook.settings.base_url  # read here: what Airflow is asked for is not to be interrupted
            call: Call = close_call(check_reference(meeting), self.creator_id)
            with self.interruptible():
                request_id = hook._call(call, attempts).request_id
        except DingTalkError as error:
            self.keep_links(context, base_url, CLOSE.page, error)
            result = ConferenceResult(meeting, self.action, error.attempts, error.request_id, error)
            self._end_in(error, meeting)
            if isinstance(error, ConferenceClosedError):
                return {**result.as_dict(with_error=False), "success": True}
            return result.as_dict()
        except BaseException:
            self._log_still_open(meeting)
            raise
        finally:
            hook.close()
        self.keep_links(context, base_url, CLOSE.page)
        return ConferenceResult(meeting, self.action, attempts.made, request_id).as_dict(with_error=False)

    def _end_in(self, error: DingTalkError, meeting: str) -> None:
        if isinstance(error, ConferenceClosedError):
            error.outcome = Outcome.SUCCEED  # unless on_error says otherwise
        try:
            self.end_in(error)
        except BaseException:
            if not isinstance(error, (ConferenceClosedError, InvalidInputError)):
                self._log_still_open(meeting)
            raise

    def _log_still_open(self, meeting: str) -> None:
        self.log.error(
            "%s may still be open. To close it, clear this task, or let its host end it in DingTalk", meeting
        )

    def shown_meeting(self) -> str:
        """Return the meeting's id."""
        return str(_meeting_in(self.conference_id))


class ConferenceMembersOperator(CallingTask):
    """List who is or was in a DingTalk video meeting.

    The XCom is a list of dicts: ``union_id``, ``user_nick``, ``conference_id``, ``attend_status`` (1
    initialised, 2 being called, 3 in the meeting, 4 did not join, 5 removed, 6 left), ``join_time`` and
    ``leave_time`` in ISO 8601, ``duration`` in seconds, ``host``, ``co_host``, ``outer_org_member``,
    ``pstn_join`` (by telephone), ``job_number``. A value that DingTalk does not give is None. A call lists up
    to 500 members.
    Source: `Query the members of a meeting
    <https://help.dingtalk.io/open/development/querying-video-conference-members>`__.

    :param conference_id: the meeting's conferenceId, or the XCom of a :class:`CreateConferenceOperator`, a
        lock or a sensor. (templated)

    The other parameters, and the errors, are those of :class:`CreateConferenceOperator`.
    """

    action = "the list of members"
    template_fields: Sequence[str] = ("conference_id", "dingtalk_conn_id")

    def __init__(self, *, conference_id: str | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conference_id = conference_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """List the members, and give the task the state that belongs to how that ended."""
        self._killed = False
        base_url: str | None = None
        members: list[dict[str, Any]] = []
        hook = self.make_hook()
        try:
            base_url = hook.settings.base_url  # read here: what Airflow is asked for is not to be interrupted
            with self.interruptible():
                members = [each.as_dict() for each in hook.conference_members(self.conference_id)]
        except DingTalkError as error:
            self.keep_links(context, base_url, LIST_MEMBERS.page, error)
            self.end_in(error)
            return members
        finally:
            hook.close()
        self.log.info("%d members", len(members))
        self.keep_links(context, base_url, LIST_MEMBERS.page)
        return members

    def shown_meeting(self) -> str:
        """Return the meeting's id."""
        return str(_meeting_in(self.conference_id))


def _meeting_in(value: Any) -> Any:
    return value.get("conference_id") if isinstance(value, Mapping) else value

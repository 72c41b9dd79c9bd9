"""Operators that create a meeting, close it, and list its members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow_provider_dingconf.client.bulk import ConferenceResult
from airflow_provider_dingconf.client.sync import interruptions_held
from airflow_provider_dingconf.compat import mask_secret
from airflow_provider_dingconf.dingtalk import errors as e
from airflow_provider_dingconf.dingtalk.conferences import check_reference
from airflow_provider_dingconf.dingtalk.endpoints import CLOSE, CREATE, LIST_MEMBERS
from airflow_provider_dingconf.dingtalk.hosting import close_call, create_call
from airflow_provider_dingconf.tasks import CallingTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.dingtalk.hosting import CreatedConference
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook


class CreateConferenceOperator(CallingTask):
    """Create a DingTalk video meeting.

    .. code-block:: python

        create = CreateConferenceOperator(
            task_id="create", title="Exam", creator_id="{{ params.creator_id }}"
        )
        announce(create.output["join_url"])

    The XCom is a dict of ``conference_id``, ``room_code``, ``join_url`` and ``title``; with
    ``with_password``, also of ``password``. Each of them is also a separate XCom with that key. The other
    operators accept the dict as their ``conference_id``. Source: `Create a meeting
    <https://help.dingtalk.io/open/development/create-a-video-conference>`__.

    If the response is lost, the provider does not repeat the call, because that could create a second
    meeting. The task fails without a retry, and the error says what may exist. Set ``retries=0``: otherwise,
    if a try loses its process after its call, the next try creates a second meeting. After SIGTERM or an
    execution timeout, the task waits for DingTalk's response, and then closes the meeting.

    :param title: the title. DingTalk cuts it after 50 characters and refuses more than 256. (templated)
    :param creator_id: the unionId of the creator, who is the host. Only the host may close the meeting.
        (templated)
    :param invite: the unionIds of the colleagues whom DingTalk invites. (templated)
    :param invite_creator: whether DingTalk invites the creator, too.
    :param with_password: whether the XCom has the meeting's password. Airflow masks it only in the log of
        this task. Another task that gets it through a template shows it in its rendered fields.
    :param multiple_outputs: Airflow's own parameter, here True by default.

    The errors and the parameters ``dingtalk_conn_id``, ``on_error``, ``max_attempts`` and ``max_seconds``
    are those of :class:`LockConferenceOperator`.
    """

    action = "create"
    page = CREATE.page
    airflow_defaults: ClassVar[dict[str, Any]] = {**CallingTask.airflow_defaults, "multiple_outputs": True}
    template_fields: Sequence[str] = ("title", "creator_id", "invite", "dingtalk_conn_id")
    switches = ("with_password", "invite_creator")
    named_by = "title"
    _made: CreatedConference | None = None

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
        self._check(locals())
        self.title = title
        self.creator_id = creator_id
        self.invite = invite
        self.invite_creator = invite_creator
        self.with_password = with_password

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> dict[str, Any]:
        self._made = None
        call = create_call(self.title, self.creator_id, self.invite, invite_creator=self.invite_creator)
        self._base_url = hook.settings.base_url
        self.log.info("Creating the meeting %r, whose host is %s", self.title, self.creator_id)
        try:
            with interruptions_held():  # only the response says which meeting to close
                self._made = made = cast("CreatedConference", hook._call(call).content)
        except e.DingTalkError as error:
            if error.uncertain:
                error.remedy = (  # its outcome is FAIL: the call is not repeatable
                    f"A meeting {self.title!r} of {self.creator_id} may exist although the response was "
                    "lost. Look for it in DingTalk or with DingTalkConferenceHook().running_conferences(), "
                    "and close it before you run this task again."
                )
            raise
        self.log.info("The meeting %s has the room code %s", made.conference_id, made.room_code)
        self._join_url = made.join_url
        if made.password and self.with_password:
            mask_secret(made.password)
        return self._xcom_of()

    def _xcom_of(self, error: e.DingTalkError | None = None) -> dict[str, Any]:
        names = ["conference_id", "room_code", "join_url", *(["password"] if self.with_password else [])]
        xcom = {name: getattr(self._made, name, None) for name in names} | {"title": self.title}
        return xcom | ({"error": error.as_dict()} if error else {})

    def _clean_up(self, context: Context, hook: DingTalkConferenceHook, raised: BaseException) -> None:
        if self._made is None:
            return
        meeting = self._made.conference_id  # no later task will know of it
        self.log.warning("The task was interrupted: closing the meeting %s", meeting)
        try:
            hook._call(close_call(check_reference(meeting), self.creator_id))
        except e.DingTalkError as failed:
            self.log.error("%s is still open, and its host has to end it: %s", meeting, failed)


class CloseConferenceOperator(CallingTask):
    """Close a DingTalk video meeting: it ends for everybody in it.

    Closing a meeting that has ended succeeds. The XCom is a dict of ``conference_id``, ``action``,
    ``success``, ``attempts`` and ``request_id``. If the call failed and ``on_error`` makes that a success, it
    has an ``error`` as well. Source: `Close a meeting
    <https://help.dingtalk.io/open/development/close-audio-video-conference>`__.

    :param conference_id: the meeting's conferenceId; or the XCom of a :class:`CreateConferenceOperator`, a
        lock or a sensor. If the create failed or was skipped, its XCom is None: there is nothing to close,
        and the task succeeds. (templated)
    :param creator_id: the unionId of the host. Only the host may close the meeting. (templated)

    The errors and the parameters ``dingtalk_conn_id``, ``on_error``, ``max_attempts`` and ``max_seconds``
    are those of :class:`LockConferenceOperator`.
    """

    action = "close"
    page = CLOSE.page
    template_fields: Sequence[str] = ("conference_id", "creator_id", "dingtalk_conn_id")

    def __init__(
        self, *, conference_id: str | Mapping[str, Any] | None, creator_id: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.conference_id = conference_id
        self.creator_id = creator_id

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> dict[str, Any]:
        if isinstance(self.conference_id, Mapping):  # a dict without a conference_id is refused below
            self.conference_id = self.conference_id.get("conference_id", self.conference_id)
        if self.conference_id is None:
            self.log.info("Nothing to close: no meeting was created")
            return self._xcom_of()
        call = close_call(check_reference(self.conference_id), self.creator_id)
        try:
            with self._interruptible(hook):
                result = hook._call(call)
        except e.ConferenceClosedError as error:
            error.outcome = e.Outcome.SUCCEED  # unless on_error says otherwise
            raise
        return self._xcom_of(None, result.attempts, result.request_id)

    def _xcom_of(
        self, error: e.DingTalkError | None = None, attempts: int = 0, request_id: str | None = None
    ) -> dict[str, Any]:
        if error is not None:
            attempts, request_id = error.attempts, error.request_id
        noted = None if isinstance(error, e.ConferenceClosedError) else error
        result = ConferenceResult(cast("str", self.conference_id), self.action, attempts, request_id, noted)
        return result.as_dict(with_error=noted is not None)

    def _clean_up(self, context: Context, hook: DingTalkConferenceHook, raised: BaseException) -> None:
        if not isinstance(raised.__cause__ or raised, (e.ConferenceClosedError, e.InvalidInputError)):
            self.log.error(
                "%s may still be open. To close it, clear this task, or let its host end it in DingTalk",
                self.conference_id,
            )


class ConferenceMembersOperator(CallingTask):
    """List the members of a DingTalk video meeting: who was invited, is in it, or was in it.

    The XCom is a list of dicts: ``union_id``, ``user_nick``, ``conference_id``, ``attend_status`` (1
    invited, 2 being called, 3 in the meeting, 4 did not join, 5 removed, 6 left), ``join_time`` and
    ``leave_time`` in ISO 8601, ``duration`` in seconds, ``host``, ``co_host``, ``outer_org_member``,
    ``pstn_join`` (by telephone), ``job_number``. A value that DingTalk does not give is None. A call lists up
    to 500 members.
    Source: `Query the members of a meeting
    <https://help.dingtalk.io/open/development/querying-video-conference-members>`__.

    :param conference_id: the meeting's conferenceId; or the XCom of a :class:`CreateConferenceOperator`, a
        lock or a sensor. (templated)

    The errors and the parameters ``dingtalk_conn_id``, ``on_error``, ``max_attempts`` and ``max_seconds``
    are those of :class:`LockConferenceOperator`.
    """

    action = "the list of members"
    page = LIST_MEMBERS.page
    template_fields: Sequence[str] = ("conference_id", "dingtalk_conn_id")

    def __init__(self, *, conference_id: str | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conference_id = conference_id

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> list[dict[str, Any]]:
        with self._interruptible(hook):
            members = [each.as_dict() for each in hook.conference_members(self.conference_id)]
        self.log.info("%d members", len(members))
        return members

    def _xcom_of(self, error: e.DingTalkError) -> list[dict[str, Any]]:
        return []

"""``DingTalkConferenceHook``: lock and unlock DingTalk meetings, and make any other DingTalk call, from code.

Each method has an async version whose name begins with ``a``. The async methods run in the caller's event
loop. The synchronous ones run the same coroutine in the process's background event loop, and wait for it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypedDict, cast

from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.client.sync import (
    cancelled_by_termination,
    run,
    shielded,
    sync,
    sync_iterator,
    termination,
)
from airflow_provider_dingconf.connection_hook import ConnectionHook
from airflow_provider_dingconf.dingtalk.calls import any_call
from airflow_provider_dingconf.dingtalk.conferences import (
    ConferenceFilter,
    check_conference_ids,
    check_named,
    check_reference,
    list_call,
)
from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError, DingTalkError, InvalidInputError
from airflow_provider_dingconf.dingtalk.hosting import members_call
from airflow_provider_dingconf.dingtalk.inputs import shown
from airflow_provider_dingconf.dingtalk.limits import CONCURRENCY, check_bulk_limits
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE
from airflow_provider_dingconf.roll_back import Try

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping

    from typing_extensions import Unpack

    from airflow_provider_dingconf.client.bulk import ConferenceResult
    from airflow_provider_dingconf.client.client import DingTalkClient
    from airflow_provider_dingconf.dingtalk.calls import Call
    from airflow_provider_dingconf.dingtalk.conferences import Conference, Reference
    from airflow_provider_dingconf.dingtalk.hosting import ConferenceMember
    from airflow_provider_dingconf.dingtalk.responses import CallResult


class LockResult(TypedDict):
    """The result of locking or unlocking one meeting: a plain dict that an XCom can hold."""

    conference_id: str | None
    """The meeting's conferenceId; None if no meeting was found."""
    action: str
    """``lock`` or ``unlock``."""
    success: bool
    attempts: int
    """How many attempts the call took."""
    request_id: str | None
    """The id that DingTalk's support asks for; None if DingTalk gave none."""


class Named(TypedDict, total=False):
    """The other ways to name a meeting; see :meth:`DingTalkConferenceHook.alock_conference`."""

    room_code: str | None
    schedule_conference_id: str | None


class Bulk(TypedDict, total=False):
    """How to lock many meetings; see :meth:`DingTalkConferenceHook.alock_conferences`."""

    concurrency: int
    calls_per_second: float | None
    on_result: Callable[[ConferenceResult], object] | None


class DingTalkConferenceHook(ConnectionHook):
    """Lock and unlock DingTalk video meetings, and make any other call of DingTalk's API.

    .. code-block:: python

        with DingTalkConferenceHook().locked("644272f14ba3310xxxxxxxxx"):
            release()

        hook = DingTalkConferenceHook(dingtalk_conn_id="dingtalk_default")
        hook.lock_conference("644272f14ba3310xxxxxxxxx")
        hook.call("GET", "/v1.0/conference/orgConferences", params={"maxResults": 20})

    A method that fails raises a subclass of
    :class:`~airflow_provider_dingconf.dingtalk.errors.DingTalkError`. If the Airflow connection is not
    defined, Airflow raises its own error. All hooks of a user on a host share their access tokens. The
    synchronous methods keep the connections to DingTalk open until :meth:`close`, and the async methods
    within ``async with hook:``.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``.
    :param max_attempts: how often one call is sent at most. These are not Airflow's ``retries``.
    :param max_seconds: the time limit of one call in seconds, including the waits between attempts.
    :raises InvalidInputError: a limit is invalid.
    """

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the behaviour of the connection form, for Airflow before 3.2."""
        behaviour = CONNECTION_TYPE["ui-field-behaviour"]
        # Airflow 2's Test button does nothing when the form opened without the extra's editor.
        shown = () if AIRFLOW_V_3_0_PLUS else ("extra",)
        return {
            "hidden_fields": [name for name in behaviour["hidden-fields"] if name not in shown],
            "relabeling": behaviour["relabeling"],
            "placeholders": behaviour["placeholders"],
        }

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the fields of the connection form, for Airflow before 3.2."""
        from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget, BS3TextFieldWidget
        from wtforms import PasswordField, StringField

        def widget(field: Mapping[str, Any]) -> Any:
            secret = field["schema"].get("format") == "password"
            kind, look = (
                (PasswordField, BS3PasswordFieldWidget) if secret else (StringField, BS3TextFieldWidget)
            )
            return kind(field["label"], widget=look(), description=field["description"])

        return {name: widget(field) for name, field in CONNECTION_TYPE["conn-fields"].items()}

    # One meeting

    async def alock_conference(
        self,
        conference_id: str | None = None,
        *,
        room_code: str | None = None,
        schedule_conference_id: str | None = None,
    ) -> LockResult:
        """Lock a meeting: no one can join it any more.

        Locking a locked meeting succeeds. Give exactly one of the parameters. A room code or a schedule costs
        at least one more call, to find the meeting. Source: `Lock a meeting
        <https://help.dingtalk.io/open/development/api-lockconference>`__.

        :param conference_id: the meeting's conferenceId.
        :param room_code: the meeting's room code (会议号), with or without spaces and dashes. If several
            meetings have it, the hook takes the one that is running.
        :param schedule_conference_id: the scheduleConferenceId of a schedule. The hook takes its running
            meeting.
        :raises InvalidConferenceIdError: the value is not one path segment; nothing was sent.
        :raises ConferenceClosedError: the meeting has ended.
        :raises ConferenceNotRunningError: no meeting, or more than one, is running under the room code or
            schedule.
        :raises DingTalkError: any other failure; the subclass says which.
        """
        client, meeting = await self._meeting(conference_id, room_code, schedule_conference_id)
        return cast("LockResult", (await client.lock("lock", meeting)).as_dict(with_error=False))

    async def aunlock_conference(
        self, conference_id: str | None = None, **named: Unpack[Named]
    ) -> LockResult:
        """Unlock a meeting: people can join it again.

        Unlocking an unlocked meeting succeeds. Parameters and errors are those of :meth:`lock_conference`.
        """
        client, meeting = await self._meeting(conference_id, **named)
        return cast("LockResult", (await client.lock("unlock", meeting)).as_dict(with_error=False))

    async def _meeting(self, *given: str | None, **named: Unpack[Named]) -> tuple[DingTalkClient, Reference]:
        """Return the client and the meeting; for a room code or a schedule, the running meeting."""
        reference = check_reference(*given, **named)
        client = self._client or await self._aconnect()
        if reference.name != "conference_id":
            reference = check_reference((await client.get_conference(reference)).conference_id)
        return client, reference

    async def _unlock_interrupted(self, result: LockResult) -> None:
        """Unlock a meeting whose lock succeeded just as the caller was interrupted."""
        await self._connect().roll_back([str(result["conference_id"])], quickly=True)

    lock_conference = sync(alock_conference, undo=_unlock_interrupted)
    unlock_conference = sync(aunlock_conference)

    @asynccontextmanager
    async def alocked(
        self, conference_id: str | None = None, **named: Unpack[Named]
    ) -> AsyncIterator[LockResult]:
        """Lock a meeting for a block of code, and unlock it however the block ends.

        The meeting is unlocked after an exception, Ctrl-C, a cancellation, and SIGTERM, with which Airflow
        ends a task. It is also unlocked if the response to the lock was lost. A meeting that ends inside the
        block is not an error. If the block raises and the unlock fails too, the unlock's error is raised,
        with the block's error as its cause. The parameters are those of :meth:`lock_conference`.

        SIGTERM cancels the asyncio task. The previous SIGTERM handler runs when the block has ended.

        :raises DingTalkError: the lock failed, and the block was not entered; or the unlock failed.
        """
        client, meeting = await self._meeting(conference_id, **named)
        with cancelled_by_termination():
            try:
                locked = await client.lock("lock", meeting)
            except DingTalkError as error:
                if error.uncertain:  # the response was lost
                    await shielded(client.roll_back([meeting.value], quickly=True))
                raise
            try:
                yield cast("LockResult", locked.as_dict(with_error=False))
            except BaseException as error:
                await _unlock_on_exit(client, meeting, error)
                raise
            await _unlock_on_exit(client, meeting)

    @contextmanager
    def locked(self, conference_id: str | None = None, **named: Unpack[Named]) -> Iterator[LockResult]:
        """Lock a meeting for a block of code, and unlock it however the block ends; see :meth:`alocked`.

        On SIGTERM, the previous handler runs, and then ``SystemExit`` is raised in the block. If Airflow has
        begun another try of the task, the older try unlocks nothing: the newer one has locked the meeting.
        """
        client, this_try = self._connect(), Try.current()
        if this_try is not None:
            client.is_superseded = this_try.is_superseded
        with termination():
            block = self.alocked(conference_id, **named)

            async def leave(_result: object = None) -> None:
                await block.__aexit__(None, None, None)

            result = run(block.__aenter__, undo=leave)
            try:
                yield result
            except BaseException as error:
                run(partial(block.__aexit__, type(error), error, error.__traceback__))
                raise
            run(leave)

    # Many meetings

    async def alock_conferences(
        self,
        conference_ids: Iterable[str],
        *,
        concurrency: int = CONCURRENCY,
        calls_per_second: float | None = None,
        on_result: Callable[[ConferenceResult], object] | None = None,
    ) -> list[ConferenceResult]:
        """Lock many meetings, some at a time. If one fails, the hook still tries the others.

        The hook stops if DingTalk refuses the app, the organisation or the address, or asks for a wait that
        does not fit into ``max_seconds``. The remaining meetings then get the same error. A shorter wait
        delays all of them.

        :param conference_ids: the meetings' conferenceIds; an id that is given twice is locked once.
        :param concurrency: the maximum number of calls at a time.
        :param calls_per_second: the maximum number of calls a second; None for the connection's.
        :param on_result: a function that receives each result as soon as it arrives. It runs in the event
            loop, so it must not call a synchronous method of a hook.
        :returns: the result of each meeting, in the order of the ids.
        :raises InvalidConferenceIdError: one of the ids is not one path segment; nothing was sent.
        :raises InvalidInputError: a limit or ``on_result`` is invalid; nothing was sent.
        :raises DingTalkError: the hook got no access token, and tried no meeting.
        """
        how: Bulk = {"concurrency": concurrency, "calls_per_second": calls_per_second, "on_result": on_result}
        return await self._lock_all("lock", conference_ids, **how)

    async def aunlock_conferences(
        self, conference_ids: Iterable[str], **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        """Unlock many meetings; the parameters and errors are those of :meth:`lock_conferences`."""
        return await self._lock_all("unlock", conference_ids, **how)

    async def _lock_all(
        self, action: str, conference_ids: Iterable[str], **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        check_bulk_limits(how.get("concurrency", CONCURRENCY), how.get("calls_per_second"))
        on_result = how.get("on_result")
        if on_result is not None and (not callable(on_result) or iscoroutinefunction(on_result)):
            raise InvalidInputError(f"on_result: {shown(on_result)} is not a function, or is an async one")
        meetings = check_conference_ids(conference_ids)
        return await (await self._aconnect()).lock_all(action, meetings, **how)

    async def _unlock_all_interrupted(self, results: list[ConferenceResult]) -> None:
        locked = [one.conference_id for one in results if one.error is None or one.error.uncertain]
        await self._connect().roll_back(locked, quickly=True)

    lock_conferences = sync(alock_conferences, undo=_unlock_all_interrupted)
    unlock_conferences = sync(aunlock_conferences)

    # Reading

    async def aget_conference(self, conference_id: str | None = None, **named: Unpack[Named]) -> Conference:
        """Return a meeting; the parameters and errors are those of :meth:`lock_conference`.

        Source: `Query a meeting
        <https://help.dingtalk.io/open/development/querying-video-conference-information>`__.

        :raises ConferenceNotFoundError: DingTalk knows no such meeting.
        """
        reference = check_reference(conference_id, **named)
        return await (await self._aconnect()).get_conference(reference)

    async def afind_conferences(
        self, *, room_code: str | None = None, schedule_conference_id: str | None = None
    ) -> list[Conference]:
        """Return the meetings of a room code or a schedule, whatever their status.

        Source: `Query the meetings of a room code
        <https://help.dingtalk.io/open/development/api-queryconferenceinfobyroomcode>`__ and `of a schedule
        <https://help.dingtalk.io/open/development/query-appointment-meeting-history-meeting-information>`__.
        Give exactly one of the parameters.

        :param room_code: the room code (会议号), with or without spaces and dashes.
        :param schedule_conference_id: the scheduleConferenceId of a schedule.
        :raises DingTalkError: a call failed; the subclass says why.
        """
        reference = check_named(room_code, schedule_conference_id)
        return await (await self._aconnect()).find_conferences(reference)

    async def arunning_conferences(
        self, *, title_pattern: str | None = None, creator_id: str | None = None
    ) -> AsyncGenerator[Conference, None]:
        """Yield the running meetings of the organisation; each page is requested when it is needed.

        Source: `Query the running meetings of an organisation
        <https://help.dingtalk.io/open/development/api-queryorgconferencelist>`__.

        :param title_pattern: a regular expression that must match somewhere in the title, such as
            ``^Release``; None for any title.
        :param creator_id: the unionId of the creator; None for any creator.
        :raises InvalidInputError: a filter is invalid; nothing was sent.
        :raises DingTalkError: a call failed; the subclass says why.
        """
        wanted = ConferenceFilter(title_pattern, creator_id)
        async for conference in (await self._aconnect()).listed(partial(list_call, None)):
            if wanted.takes(conference.title, conference.creator_id):
                yield conference

    async def aconference_members(
        self, conference_id: str | Mapping[str, Any]
    ) -> AsyncGenerator[ConferenceMember, None]:
        """Yield the members of a meeting, past and present; each page is requested when it is needed.

        Source: `Query the members of a meeting
        <https://help.dingtalk.io/open/development/querying-video-conference-members>`__.

        :param conference_id: the meeting's conferenceId, or a dict with it as ``conference_id``.
        :raises InvalidConferenceIdError: the value is not one path segment; nothing was sent.
        :raises ConferenceNotFoundError: DingTalk knows no such meeting.
        :raises DingTalkError: another failure; the subclass says why.
        """
        call = partial(members_call, check_reference(conference_id))
        async for member in (await self._aconnect()).listed(call):
            yield member

    get_conference = sync(aget_conference)
    find_conferences = sync(afind_conferences)
    running_conferences = sync_iterator(arunning_conferences)
    conference_members = sync_iterator(aconference_members)

    # Any other call

    async def acall(
        self,
        method: str,
        path: str,
        *,
        path_params: Mapping[str, str | int] | None = None,
        params: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | list[Any] | None = None,
        repeatable: bool = True,
    ) -> Any:
        """Make any other call of DingTalk's API, with the hook's access token, retries and errors.

        :param method: the HTTP method.
        :param path: the path, such as ``/v1.0/conference/videoConferences/{id}/members``.
        :param path_params: values for the names in braces; each is percent-encoded as one path segment.
        :param params: the query parameters: strings, numbers and booleans.
        :param json: the body.
        :param repeatable: whether the call may be sent again after its response was lost. Set False for a
            call that creates something: the hook then repeats it only if DingTalk never received it, or
            refused it as too frequent. If the response was lost, the error says that the call may have taken
            effect, and a task fails without a retry.
        :returns: the JSON of the response; None if the response has no body.
        :raises InvalidInputError: method, path or a parameter is malformed; nothing was sent.
        :raises DingTalkError: any other failure; the subclass says which.
        """
        call = any_call(
            method, path, path_params=path_params, params=params, json=json, repeatable=repeatable
        )
        return (await (await self._aconnect()).call(call)).content

    call = sync(acall)

    def _call(self, call: Call) -> CallResult:
        return run(partial(self._connect().call, call))


async def _unlock_on_exit(
    client: DingTalkClient, meeting: Reference, earlier: BaseException | None = None
) -> None:
    """Unlock after a block; if that is interrupted, unlock again, quickly."""
    try:
        if not await client.is_superseded():
            await client.lock("unlock", meeting)
    except ConferenceClosedError:
        pass
    except DingTalkError as error:
        raise error from earlier
    except asyncio.CancelledError:
        await shielded(client.roll_back([meeting.value], quickly=True))
        raise

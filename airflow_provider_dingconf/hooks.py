"""``DingTalkConferenceHook``: lock and unlock DingTalk meetings, and make any other DingTalk call, from code.

Each method has an async twin whose name begins with ``a``. The async methods run in the caller's event loop;
the synchronous ones wait for the same coroutine in one background event loop of the process.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypedDict, cast

from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.client.bulk import shielded
from airflow_provider_dingconf.client.sync import (
    cancelled_by_termination,
    run,
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
    """The result of locking or unlocking one meeting: a plain dict, fit for an XCom."""

    conference_id: str | None
    """None if no meeting was found."""
    action: str
    """``lock`` or ``unlock``."""
    success: bool
    attempts: int
    """Attempts of the call."""
    request_id: str | None
    """The id that DingTalk's support asks for; None if DingTalk gave none."""


class Named(TypedDict, total=False):
    """A meeting's names other than its conferenceId; see :meth:`DingTalkConferenceHook.alock_conference`."""

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

    A method that does not do what was asked raises a subclass of
    :class:`~airflow_provider_dingconf.dingtalk.errors.DingTalkError`. The one other error is Airflow's, for a
    connection that is not defined. All hooks of a host share the access tokens. Connections to DingTalk
    stay open between the calls of a hook until :meth:`close`; for the async methods, within
    ``async with hook:``.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``.
    :param max_attempts: attempts of one call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of one call in all, the waits between attempts included.
    :raises InvalidInputError: a limit is invalid.
    """

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the behaviour of the connection form; Airflow 3.2 reads the provider info instead."""
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
        """Return the fields of the connection form; Airflow 3.2 reads the provider info instead."""
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

        Locking a locked meeting succeeds. Give exactly one of the parameters; all but the first cost a
        further call. Source: `Lock a meeting
        <https://help.dingtalk.io/open/development/api-lockconference>`__.

        :param conference_id: the meeting's conferenceId.
        :param room_code: the meeting's room code (会议号), with or without spaces and dashes. It can
            stand for several meetings: the one that is running is meant.
        :param schedule_conference_id: the scheduleConferenceId of a schedule: its running meeting is meant.
        :raises InvalidConferenceIdError: the value is not one path segment; nothing was sent.
        :raises ConferenceClosedError: the meeting has ended.
        :raises ConferenceNotRunningError: no meeting, or more than one, is running under that name.
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
        """Return the client, and the meeting that is named: of a room code or schedule, the running one."""
        reference = check_reference(*given, **named)
        client = self._client or await self._aconnect()
        if reference.name != "conference_id":
            reference = check_reference((await client.get_conference(reference)).conference_id)
        return client, reference

    async def _unlock_interrupted(self, result: LockResult) -> None:
        """Unlock a meeting whose lock succeeded at the moment of an interruption."""
        await self._connect().roll_back([str(result["conference_id"])], quickly=True)

    lock_conference = sync(alock_conference, undo=_unlock_interrupted)
    unlock_conference = sync(aunlock_conference)

    @asynccontextmanager
    async def alocked(
        self, conference_id: str | None = None, **named: Unpack[Named]
    ) -> AsyncIterator[LockResult]:
        """Lock a meeting for a block of code, and unlock it however the block ends.

        It is unlocked after an exception, Ctrl-C, a cancellation, and SIGTERM, by which Airflow ends a task;
        and if the response to the lock was lost. A meeting that ended inside the block is not an error. When
        the block raises and the unlock fails too, the unlock's error is raised, with the block's as its
        cause. Parameters as :meth:`lock_conference`.

        SIGTERM cancels the asyncio task, and its former handler is called once the block has ended.

        :raises DingTalkError: the meeting could not be locked (the block is then not entered), or could not
            be unlocked.
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

        On SIGTERM the handler that was there before is called, and ``SystemExit`` is raised in the block. In
        a task of which Airflow has begun another try, nothing is unlocked: the other try has locked the
        meeting.
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
        """Lock many meetings, some at a time; a failure of one does not keep the others from being tried.

        When DingTalk refuses the app, the organisation or the address as such, or asks for a wait that does
        not fit into ``max_seconds``, the rest are not tried and have the same error. A shorter wait holds
        up all of them.

        :param conference_ids: the meetings' conferenceIds; one that is given twice is locked once.
        :param concurrency: how many meetings at a time, at most.
        :param calls_per_second: calls a second, at most; None for what the connection says.
        :param on_result: receives each result when it is there. It runs in the event loop: use no
            synchronous method of a hook in it.
        :returns: the result of each meeting, in the order of the ids.
        :raises InvalidConferenceIdError: one of the ids is not one path segment; nothing was sent.
        :raises InvalidInputError: a limit or ``on_result`` is invalid; nothing was sent.
        :raises DingTalkError: there is no access token; no meeting was tried.
        """
        return await self._lock_all(
            "lock",
            conference_ids,
            concurrency=concurrency,
            calls_per_second=calls_per_second,
            on_result=on_result,
        )

    async def aunlock_conferences(
        self, conference_ids: Iterable[str], **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        """Unlock many meetings; parameters and errors are those of :meth:`lock_conferences`."""
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
        """Return a meeting as DingTalk describes it; parameters and errors as :meth:`lock_conference`.

        Source: `Query a meeting
        <https://help.dingtalk.io/open/development/querying-video-conference-information>`__.

        :raises ConferenceNotFoundError: DingTalk knows no such meeting.
        """
        reference = check_reference(conference_id, **named)
        return await (await self._aconnect()).get_conference(reference)

    async def afind_conferences(
        self, *, room_code: str | None = None, schedule_conference_id: str | None = None
    ) -> list[Conference]:
        """Return the meetings of a room code, or those held for a schedule, whatever their status.

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

        :param title_pattern: a regular expression to be found in the title, such as ``^Release``; None for
            any title.
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
        """Yield who is or was in a meeting; each page is requested when it is needed.

        Source: `Query the members of a meeting
        <https://help.dingtalk.io/open/development/querying-video-conference-members>`__.

        :param conference_id: the meeting's conferenceId, or a dict that has it as its ``conference_id``.
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
        """Make any other call of DingTalk's API, with the same token, retries and errors.

        :param method: the HTTP method.
        :param path: the path, such as ``/v1.0/conference/videoConferences/{id}/members``.
        :param path_params: values for the names in braces; each is percent-encoded as one path segment.
        :param params: query parameters: texts, numbers and booleans.
        :param json: the body.
        :param repeatable: whether the call may be sent again when its response was lost. Set False for a call
            that creates something; it is then repeated only when DingTalk refused it as too frequent. If its
            response was lost, the error says that the call may have taken effect, and fails a task without
            a retry.
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
        """Make a call for an operator."""
        return run(partial(self._connect().call, call))


async def _unlock_on_exit(
    client: DingTalkClient, meeting: Reference, earlier: BaseException | None = None
) -> None:
    """Unlock after a block; when that is interrupted, begin again and be quick."""
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

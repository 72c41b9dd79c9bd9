"""``DingTalkConferenceHook``: one connection to DingTalk, its access token, retries and calls.

The hook is a thin face. What to send, what an answer means and when to try again is decided in
``dingtalk/``; how it goes over the wire in ``transport``. Each method has an async twin, whose name
begins with ``a``, and which differs only in who waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, cast

from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS
from asgiref.sync import sync_to_async
from tenacity import AsyncRetrying, Retrying

from airflow_provider_dingconf.client.bulk import (
    ConferenceResult,
    Pace,
    check_conference_ids,
    each_of,
    to_the_end,
)
from airflow_provider_dingconf.client.http import AsyncTransport, Transport
from airflow_provider_dingconf.client.settings import Settings, read_connection
from airflow_provider_dingconf.client.sync import cancelled_by_termination, run_in_thread, termination
from airflow_provider_dingconf.client.token_cache import (
    LOCK_SECONDS,
    Shelf,
    ban_of,
    shelf_of,
    suite_ticket_of,
)
from airflow_provider_dingconf.compat import get_async_connection, mask_secret
from airflow_provider_dingconf.dingtalk.calls import Call, any_call, lock_call
from airflow_provider_dingconf.dingtalk.conferences import (
    BATCH,
    Conference,
    ConferenceFilter,
    Page,
    check_named,
    check_reference,
    conference_call,
    conferences_of,
    query_call,
    running_conferences_call,
    the_running,
)
from airflow_provider_dingconf.dingtalk.errors import (
    AddressBannedError,
    CallTimeoutError,
    ConferenceClosedError,
    DingTalkError,
    PermissionDeniedError,
    ThrottledError,
)
from airflow_provider_dingconf.dingtalk.events import open_call
from airflow_provider_dingconf.dingtalk.exchange import Attempts, TokenWanted, exchange, purchase
from airflow_provider_dingconf.dingtalk.limits import (
    CALLS_PER_SECOND,
    CONCURRENCY,
    MAX_ATTEMPTS,
    MAX_SECONDS,
    check_bulk_limits,
    check_limits,
)
from airflow_provider_dingconf.dingtalk.retries import retry_policy
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from tenacity import RetryCallState
    from typing_extensions import Self, Unpack

    from airflow_provider_dingconf.dingtalk.calls import Request, Response
    from airflow_provider_dingconf.dingtalk.conferences import Reference
    from airflow_provider_dingconf.dingtalk.events import Address
    from airflow_provider_dingconf.dingtalk.responses import CallResult
    from airflow_provider_dingconf.dingtalk.retries import Policy
    from airflow_provider_dingconf.dingtalk.tokens import App, Token

UNDO_SECONDS = 4.0
"""How long undoing a lock may take: Airflow follows SIGTERM by SIGKILL after 5 seconds."""

UNDO_CONCURRENCY = 100
UNDO_CALLS_PER_SECOND = 400.0
"""Of many locks, in those seconds: twice the usual, and still under what DingTalk bans an address for."""

_LOCK_POLLS = (0.01, 0.02, 0.05)
_LOCK_POLL_SECONDS = 0.1
"""Between looks at the lock, after the first few: fifty processes that wait are then no load."""


class LockResult(TypedDict):
    """What came of locking or unlocking a meeting; a plain dict, fit for an XCom."""

    conference_id: str | None
    """None where no meeting was found."""
    action: str
    """``lock`` or ``unlock``."""
    success: bool
    attempts: int
    """How often the call was tried."""
    request_id: str | None
    """What DingTalk's support asks for; None where DingTalk gave none."""


class Named(TypedDict, total=False):
    """A meeting's names other than its conferenceId; see :meth:`DingTalkConferenceHook.lock_conference`."""

    room_code: str | None
    schedule_conference_id: str | None


class Bulk(TypedDict, total=False):
    """How many meetings are locked; see :meth:`DingTalkConferenceHook.lock_conferences`."""

    concurrency: int
    calls_per_second: float
    on_result: Callable[[ConferenceResult], object]


class DingTalkConferenceHook(BaseHook):
    """Lock and unlock DingTalk video meetings, and make any other call of DingTalk's API.

    .. code-block:: python

        with DingTalkConferenceHook().locked("644272f14ba3310xxxxxxxxx"):
            release()

        hook = DingTalkConferenceHook(dingtalk_conn_id="dingtalk_default")
        hook.lock_conference("644272f14ba3310xxxxxxxxx")
        hook.call("GET", "/v1.0/conference/orgConferences", params={"maxResults": 20})

    Every method raises a :class:`~airflow_provider_dingconf.dingtalk.errors.DingTalkError` when the call does
    not do what was asked, and nothing else but Airflow's own error for a connection that is not defined. All
    hooks of a host share the access tokens. Connections to DingTalk are kept open between the calls of a hook
    until :meth:`close`; for the async methods, within ``async with hook:``.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``.
    :param max_attempts: attempts of one call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of one call in all, the waits between attempts included.
    :param max_wait: seconds of one wait between attempts, over which the error is raised at once, with the
        wait as its ``retry_after``; None for no limit but ``max_seconds``.
    """

    conn_name_attr = "dingtalk_conn_id"
    default_conn_name = "dingtalk_default"
    conn_type = "dingtalk"
    hook_name = "DingTalk"

    def __init__(
        self,
        dingtalk_conn_id: str = default_conn_name,
        *,
        max_attempts: int = MAX_ATTEMPTS,
        max_seconds: float = MAX_SECONDS,
        max_wait: float | None = None,
    ) -> None:
        super().__init__()
        check_limits(max_attempts, max_seconds)
        self.max_wait = max_wait
        self.dingtalk_conn_id = dingtalk_conn_id
        self.max_attempts = max_attempts
        self.max_seconds = max_seconds
        self._kept: Transport | None = None
        self._blocks: dict[asyncio.AbstractEventLoop, _Block] = {}
        self._masked: Token | None = None

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the behaviour of the connection form; Airflow 3.2 reads the provider info instead."""
        behaviour = CONNECTION_TYPE["ui-field-behaviour"]
        # Airflow 2's Test button does nothing where the form opened without the extra's editor.
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

    def lock_conference(
        self,
        conference_id: str | None = None,
        *,
        room_code: str | None = None,
        schedule_conference_id: str | None = None,
    ) -> LockResult:
        """Lock a meeting: no one can join it any more.

        Locking a locked meeting succeeds. Exactly one of the parameters is given; all but the first cost a
        further call. Source: `Lock a meeting
        <https://help.dingtalk.io/open/development/api-lockconference>`__.

        :param conference_id: the meeting's conferenceId.
        :param room_code: what DingTalk shows as its room code, with or without spaces and dashes: of its
            meetings, the one that is running.
        :param schedule_conference_id: the schedule's scheduleConferenceId: of its meetings, the one that is
            running.
        :raises InvalidConferenceIdError: what is given is not one path segment; nothing was sent.
        :raises ConferenceClosedError: the meeting has ended.
        :raises ConferenceNotRunningError: no meeting, or more than one, is running under that name.
        :raises DingTalkError: any other failure; the subclass says which.
        """
        return self.act(
            "lock", conference_id, room_code=room_code, schedule_conference_id=schedule_conference_id
        )

    async def alock_conference(self, conference_id: str | None = None, **named: Unpack[Named]) -> LockResult:
        """Lock a meeting; see :meth:`lock_conference`."""
        return await self.aact("lock", conference_id, **named)

    def unlock_conference(self, conference_id: str | None = None, **named: Unpack[Named]) -> LockResult:
        """Unlock a meeting: people can join it again.

        Unlocking an unlocked meeting succeeds. Parameters and errors are those of :meth:`lock_conference`.
        """
        return self.act("unlock", conference_id, **named)

    async def aunlock_conference(
        self, conference_id: str | None = None, **named: Unpack[Named]
    ) -> LockResult:
        """Unlock a meeting; see :meth:`unlock_conference`."""
        return await self.aact("unlock", conference_id, **named)

    def act(self, action: str, conference_id: str | None = None, **named: Unpack[Named]) -> LockResult:
        """Lock or unlock a meeting, as ``action`` says; see :meth:`lock_conference`.

        :param action: ``lock`` or ``unlock``.
        :param conference_id: the meeting's conferenceId.
        :param named: its other names.
        """
        return self._act(action, self._conference_id(conference_id, **named), Attempts())

    def _act(self, action: str, conference_id: str, attempts: Attempts) -> LockResult:
        try:
            good = self._run(lock_call(conference_id, action), attempts)
        except DingTalkError:
            raise
        except BaseException:  # interrupted: the lock may have been made
            if action == "lock" and attempts.uncertain:
                self._undo_lock(conference_id)
            raise
        return _lock_result(action, conference_id, good, attempts)

    async def aact(self, action: str, conference_id: str | None = None, **named: Unpack[Named]) -> LockResult:
        """Lock or unlock a meeting; see :meth:`act`."""
        return await self._aact(action, await self._aconference_id(conference_id, **named), Attempts())

    async def _aact(
        self, action: str, conference_id: str, attempts: Attempts, pace: Pace | None = None
    ) -> LockResult:
        try:
            good = await self._arun(lock_call(conference_id, action), attempts, pace)
        except DingTalkError:
            raise
        except BaseException:
            if action == "lock" and attempts.uncertain:
                await self._aundo_lock(conference_id)
            raise
        return _lock_result(action, conference_id, good, attempts)

    def lock_conferences(
        self,
        conference_ids: Iterable[str],
        *,
        concurrency: int = CONCURRENCY,
        calls_per_second: float = CALLS_PER_SECOND,
        on_result: Callable[[ConferenceResult], object] = lambda _result: None,
    ) -> list[ConferenceResult]:
        """Lock many meetings, some at a time; every one is tried, whatever comes of the others.

        Once DingTalk refuses the app or the address as such, or asks for a wait that does not fit into the
        hook's limits, the rest are not tried, and have the same error. A shorter wait holds up all of them.

        :param conference_ids: the meetings' conferenceIds; one that is given twice is locked once.
        :param concurrency: at most so many at a time.
        :param calls_per_second: at most so many calls a second.
        :param on_result: is told of each result as it comes.
        :returns: what came of each meeting, in the order in which they are given.
        :raises InvalidConferenceIdError: one of the ids is not one path segment; nothing was sent.
        :raises InvalidInputError: a limit is wrong; nothing was sent.
        :raises DingTalkError: there is no access token to be had; no meeting was tried.
        """
        return self.act_all(
            "lock",
            conference_ids,
            concurrency=concurrency,
            calls_per_second=calls_per_second,
            on_result=on_result,
        )

    async def alock_conferences(
        self, conference_ids: Iterable[str], **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        """Lock many meetings; see :meth:`lock_conferences`."""
        return await self.aact_all("lock", conference_ids, **how)

    def unlock_conferences(
        self, conference_ids: Iterable[str], **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        """Unlock many meetings; parameters and errors are those of :meth:`lock_conferences`."""
        return self.act_all("unlock", conference_ids, **how)

    async def aunlock_conferences(
        self, conference_ids: Iterable[str], **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        """Unlock many meetings; see :meth:`lock_conferences`."""
        return await self.aact_all("unlock", conference_ids, **how)

    def act_all(
        self, action: str, conference_ids: Iterable[str], **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        """Lock or unlock many meetings, as ``action`` says; see :meth:`lock_conferences`.

        Where the caller is interrupted, a lock that was being made is undone first. Within a running event
        loop, which this would hold up, there is :meth:`aact_all`.
        """
        _ = self.settings  # read it here: Airflow answers in the main thread
        return run_in_thread(self.aact_all(action, conference_ids, **how))

    def undo_locks(
        self, conference_ids: Iterable[str], *, quickly: bool = False, **how: Unpack[Bulk]
    ) -> list[ConferenceResult]:
        """Unlock meetings that were locked in vain, as far as possible; SIGTERM waits until it is done.

        :param conference_ids: the meetings' conferenceIds.
        :param quickly: whether the process is about to be killed: each call then has some seconds only, and
            more are made at a time.
        :param how: parameters of :meth:`lock_conferences`, where it is not to be quick.
        :returns: what came of each meeting; no error is raised.
        """
        ids = check_conference_ids(conference_ids)
        another = self._another() if quickly else self._another(MAX_ATTEMPTS, MAX_SECONDS)
        if quickly:
            how = {"concurrency": UNDO_CONCURRENCY, "calls_per_second": UNDO_CALLS_PER_SECOND}
        try:
            return run_in_thread(another.aact_all("unlock", ids, **how), to_the_end=True)
        except DingTalkError as error:  # there is no access token to be had
            return [ConferenceResult(one, "unlock", 0, error.request_id, error) for one in ids]

    async def aact_all(
        self,
        action: str,
        conference_ids: Iterable[str],
        concurrency: int = CONCURRENCY,
        calls_per_second: float = CALLS_PER_SECOND,
        on_result: Callable[[ConferenceResult], object] = lambda _result: None,
    ) -> list[ConferenceResult]:
        """Lock or unlock many meetings; see :meth:`act_all`."""
        check_bulk_limits(concurrency, calls_per_second)
        ids = check_conference_ids(conference_ids)
        if not ids:
            return []
        pace = Pace(calls_per_second)

        async def one(conference_id: str) -> ConferenceResult:
            attempts = Attempts()
            await pace.turn()
            try:
                done = await self._aact(action, conference_id, attempts, pace)
            except DingTalkError as error:
                if isinstance(error, ThrottledError) and not is_of_all(error):
                    pace.hold(error.retry_after or 0.0)
                return ConferenceResult(conference_id, action, attempts.made, error.request_id, error)
            return ConferenceResult(conference_id, action, attempts.made, done["request_id"])

        def is_of_all(error: DingTalkError) -> bool:
            too_long = isinstance(error, ThrottledError) and not self._policy_allows(error.retry_after or 0.0)
            return too_long or error.concerns_all

        async with self:
            await self._awarm()
            return await each_of(
                ids, action, one, concurrency=concurrency, is_of_all=is_of_all, on_result=on_result
            )

    def get_conference(self, conference_id: str | None = None, **named: Unpack[Named]) -> Conference:
        """Return a meeting, as DingTalk tells of it; parameters and errors as :meth:`lock_conference`.

        Source: `Query a meeting <https://help.dingtalk.io/open/development/api-queryconferenceinfo>`__.

        :raises ConferenceNotFoundError: DingTalk knows no such meeting.
        """
        reference = check_reference(conference_id, **named)
        if reference.name == "conference_id":
            return cast("Conference", self._run(conference_call(reference.value)).content)
        return the_running(self._find(reference), reference)

    async def aget_conference(self, conference_id: str | None = None, **named: Unpack[Named]) -> Conference:
        """Return a meeting; see :meth:`get_conference`."""
        reference = check_reference(conference_id, **named)
        if reference.name == "conference_id":
            return cast("Conference", (await self._arun(conference_call(reference.value))).content)
        return the_running(await self._afind(reference), reference)

    def find_conferences(
        self, *, room_code: str | None = None, schedule_conference_id: str | None = None
    ) -> list[Conference]:
        """Return the meetings of a room code, or the last one held for a schedule, whatever their status.

        Source: `Query the meetings of a room code
        <https://help.dingtalk.io/open/development/api-queryconferenceinfobyroomcode>`__ and `of a schedule
        <https://help.dingtalk.io/open/development/api-queryscheduleconferenceinfo>`__.
        """
        return self._find(check_named(room_code, schedule_conference_id))

    async def afind_conferences(
        self, *, room_code: str | None = None, schedule_conference_id: str | None = None
    ) -> list[Conference]:
        """Return the meetings of a room code or schedule; see :meth:`find_conferences`."""
        return await self._afind(check_named(room_code, schedule_conference_id))

    def _find(self, reference: Reference) -> list[Conference]:
        return list(_drive(conferences_of(reference), lambda call: self._run(call).content))

    async def _afind(self, reference: Reference) -> list[Conference]:
        async def page_of(call: Call) -> Page:
            return cast("Page", (await self._arun(call)).content)

        return list(await _adrive(conferences_of(reference), page_of))

    def running_conferences(
        self, *, title_pattern: str | None = None, creator_id: str | None = None
    ) -> Iterator[Conference]:
        """Yield the running meetings of the organisation; each page is asked for when it is wanted.

        Source: `Query the running meetings of an organisation
        <https://help.dingtalk.io/open/development/api-queryorgconferencelist>`__.

        :param title_pattern: a regular expression to be found in the title: ``^Release``. None takes any.
        :param creator_id: the unionId of the creator. None takes any.
        :raises InvalidInputError: the pattern is no regular expression; nothing was sent.
        :raises DingTalkError: a call failed; the subclass says why.
        """
        wanted, token, last = ConferenceFilter(title_pattern, creator_id), None, False
        while not last:
            page: Page = self._run(running_conferences_call(token)).content
            yield from (one for one in page.conferences if wanted.takes(one.title, one.creator_id))
            token, last = page.next_token, page.next_token is None

    async def arunning_conferences(
        self, *, title_pattern: str | None = None, creator_id: str | None = None
    ) -> AsyncIterator[Conference]:
        """Yield the running meetings of the organisation; see :meth:`running_conferences`."""
        wanted, token, last = ConferenceFilter(title_pattern, creator_id), None, False
        while not last:
            page: Page = (await self._arun(running_conferences_call(token))).content
            for one in page.conferences:
                if wanted.takes(one.title, one.creator_id):
                    yield one
            token, last = page.next_token, page.next_token is None

    async def arunning_of(self, conference_ids: Sequence[str]) -> dict[str, Conference]:
        """Return those of some meetings that are running, by id: one call for each hundred.

        Source: `Query meetings <https://help.dingtalk.io/open/development/api-queryconferenceinfobatch>`__.

        :raises DingTalkError: a call failed; the subclass says why.
        """
        found: dict[str, Conference] = {}
        for first in range(0, len(conference_ids), BATCH):
            call = query_call(conference_ids[first : first + BATCH])
            found |= (await self._arun(call)).content
        return found

    def _conference_id(self, conference_id: str | None, **named: Unpack[Named]) -> str:
        """Return the id of the meeting that is named."""
        reference = check_reference(conference_id, **named)
        by_id = reference.name == "conference_id"
        return reference.value if by_id else self.get_conference(**named).conference_id

    async def _aconference_id(self, conference_id: str | None, **named: Unpack[Named]) -> str:
        """Return the id of the meeting that is named; :meth:`_conference_id`, awaited."""
        reference = check_reference(conference_id, **named)
        by_id = reference.name == "conference_id"
        return reference.value if by_id else (await self.aget_conference(**named)).conference_id

    @contextmanager
    def locked(self, conference_id: str | None = None, **named: Unpack[Named]) -> Iterator[LockResult]:
        """Lock a meeting for a block of code, and unlock it whatever happens inside.

        It is unlocked after an exception, an interruption from the keyboard, and SIGTERM, by which Airflow
        ends a task; and if the lock's answer was lost. A meeting that ended inside is not an error: there
        is nothing left to unlock. Where the block raises and the unlock fails, the latter is raised, with
        the former as its cause. Parameters as :meth:`lock_conference`.

        :raises DingTalkError: the meeting could not be locked (the block is then not entered), or not be
            unlocked.
        """
        found = self._conference_id(conference_id, **named)
        with termination() as hold_termination:
            try:
                result = self._act("lock", found, Attempts())
            except DingTalkError as error:
                if error.uncertain:  # the lock may have been made, and its answer lost
                    self._undo_lock(found)
                raise
            try:
                yield result
            except BaseException as error:
                hold_termination()
                self._unlock_at_last(found, error)
                raise
            hold_termination()
            self._unlock_at_last(found)

    @asynccontextmanager
    async def alocked(
        self, conference_id: str | None = None, **named: Unpack[Named]
    ) -> AsyncIterator[LockResult]:
        """Lock a meeting for a block of code; see :meth:`locked`. Cancelling the task unlocks, too.

        The unlock itself is not cancelled, but waited for. SIGTERM cancels the task, and is passed on to
        whoever handled it before once the block has ended.
        """
        found = await self._aconference_id(conference_id, **named)
        with cancelled_by_termination():
            try:
                result = await self._aact("lock", found, Attempts())
            except DingTalkError as error:
                if error.uncertain:
                    await self._aundo_lock(found)
                raise
            try:
                yield result
            except BaseException as error:
                with _unlocking_at_last(error):
                    await to_the_end(self.aunlock_conference(found))
                raise
            with _unlocking_at_last():
                await to_the_end(self.aunlock_conference(found))

    def _unlock_at_last(self, conference_id: str, earlier: BaseException | None = None) -> None:
        """Unlock after a block; where that is interrupted, once more, quickly."""
        with _unlocking_at_last(earlier):
            try:
                self.unlock_conference(conference_id)
            except DingTalkError:
                raise
            except BaseException:
                self._undo_lock(conference_id)
                raise

    def _undo_lock(self, conference_id: str) -> None:
        """Unlock, quickly and if possible: Airflow ends a task some seconds after it has asked it to end."""
        another = self._another()
        with termination() as hold_termination, suppress(DingTalkError):
            hold_termination()
            try:
                another.unlock_conference(conference_id)
            finally:
                another.close()

    async def _aundo_lock(self, conference_id: str) -> None:
        """Unlock, quickly and if possible; :meth:`_undo_lock`, awaited, however often it is cancelled."""
        with suppress(DingTalkError):
            await to_the_end(self._another().aunlock_conference(conference_id))

    def _another(self, max_attempts: int = 2, max_seconds: float = UNDO_SECONDS) -> DingTalkConferenceHook:
        """Return a hook of the same connection, since this one's call was interrupted in the middle."""
        hook = DingTalkConferenceHook(
            self.dingtalk_conn_id, max_attempts=max_attempts, max_seconds=max_seconds
        )
        hook.__dict__["settings"] = self.settings
        return hook

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """Make any other call of DingTalk's API, with the same token, retries and errors.

        :param method: the HTTP method.
        :param path: the path, such as ``/v1.0/conference/orgConferences``.
        :param params: query parameters: texts, numbers and booleans.
        :param json: the body.
        :param repeatable: whether the call may be sent again when its answer was lost. Say False for a call
            that creates something; it is then repeated only where DingTalk refused it as too frequent.
        :returns: the JSON object DingTalk answered.
        :raises InvalidInputError: method or path are unsound; nothing was sent.
        :raises DingTalkError: any other failure; the subclass says which.
        """
        call = any_call(method, path, params=params, json=json, repeatable=repeatable)
        return cast("dict[str, Any]", self._run(call).content)

    async def acall(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """Make any other call of DingTalk's API; see :meth:`call`."""
        call = any_call(method, path, params=params, json=json, repeatable=repeatable)
        return cast("dict[str, Any]", (await self._arun(call)).content)

    def test_connection(self) -> tuple[bool, str]:
        """Buy an access token, or prove a static one with the cheapest reading call.

        :returns: whether it worked, and a sentence for the person who pressed the button.
        """
        try:
            if self.settings.app is None:
                with _whatever_it_may_read():
                    self._run(running_conferences_call(max_results=1))
                return True, _accepted(self.settings)
            until = time.monotonic() + self.max_seconds
            with (
                self._logged(self.settings.app.token_call(), Attempts()),
                _holding(shelf_of(self.settings), until),
            ):
                token = self._buy(until)
        except DingTalkError as error:
            return False, str(error)
        return True, _bought(self.settings, token)

    async def atest_connection(self) -> tuple[bool, str]:
        """Buy an access token, or prove a static one; see :meth:`test_connection`."""
        try:
            settings = await self._asettings()
            if settings.app is None:
                with _whatever_it_may_read():
                    await self._arun(running_conferences_call(max_results=1))
                return True, _accepted(settings)
            until = time.monotonic() + self.max_seconds
            with self._logged(settings.app.token_call(), Attempts()):
                async with _aholding(shelf_of(settings), until), self._opened() as transport:
                    token = await self._abuy(transport, until)
        except DingTalkError as error:
            return False, str(error)
        return True, _bought(settings, token)

    async def aevents_address(self) -> Address:
        """Ask DingTalk where the app's events come from, for one connection.

        :raises InvalidConnectionError: the connection has a static access token in place of credentials.
        :raises DingTalkError: any other failure; the subclass says which.
        """
        app = (await self._asettings()).events_app
        return cast("Address", (await self._arun(open_call(app))).content)

    @cached_property
    def settings(self) -> Settings:
        """What the connection says.

        :raises InvalidConnectionError: a field is missing, contradictory, unknown, or of a wrong type.
        """
        settings = read_connection(self.get_connection(self.dingtalk_conn_id), self.dingtalk_conn_id)
        _mask(settings.secrets)
        return settings

    async def _asettings(self) -> Settings:
        """Return what the connection says, without blocking the loop for it; see :attr:`settings`."""
        if "settings" not in self.__dict__:
            conn = await get_async_connection(self.dingtalk_conn_id, hook=self)
            settings = read_connection(conn, self.dingtalk_conn_id)
            await _amask(settings.secrets)
            self.__dict__["settings"] = settings
        return self.settings

    def close(self) -> None:
        """Close the connections to DingTalk; the next call opens new ones."""
        transport, self._kept = self._kept, None
        if transport is not None:
            transport.close()

    async def __aenter__(self) -> Self:
        """Keep the connections to DingTalk open between the async calls of the block, in this event loop."""
        settings, loop = await self._asettings(), asyncio.get_running_loop()
        block = self._blocks.get(loop)
        if block is None:
            block = self._blocks[loop] = _Block(await AsyncTransport(settings).__aenter__())
        block.users += 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections to DingTalk, once no call uses them any more."""
        loop = asyncio.get_running_loop()
        block = self._blocks[loop]
        block.users -= 1
        if not block.users:
            del self._blocks[loop]
            await block.transport.__aexit__(*exc_info)

    @property
    def _transport(self) -> Transport:
        """The connections of this process: those of the one that it was forked from are left alone."""
        if self._kept is None or self._kept.process != os.getpid():
            self._kept = Transport(self.settings)
        return self._kept

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[AsyncTransport]:
        """Give the block's transport, or one for this call alone."""
        block = self._blocks.get(asyncio.get_running_loop())
        if block is not None:
            async with self:  # the block may end before the call
                yield block.transport
        else:
            async with AsyncTransport(await self._asettings()) as transport:
                yield transport

    def _run(self, call: Call, attempts: Attempts | None = None) -> CallResult:
        """Make a call, as often as the policy says."""
        attempts = attempts or Attempts()
        settings, until = self.settings, time.monotonic() + self.max_seconds

        def perform(want: TokenWanted | Request) -> Token | Response:
            if isinstance(want, TokenWanted):
                token = self._token(want.refused, until)
                _left(until)
                return token
            return self._send(want, until)

        def attempt() -> CallResult:
            with self._logged(call, attempts) as done:
                done.append(_drive(exchange(call, attempts, time.time, settings.secrets), perform))
            return done[0]

        try:
            return Retrying(**self._policy(call))(attempt)
        except DingTalkError as error:
            error.uncertain = attempts.uncertain
            raise error.with_traceback(None) from None  # a log that prints locals would print secrets

    async def _arun(
        self, call: Call, attempts: Attempts | None = None, pace: Pace | None = None
    ) -> CallResult:
        """Make a call, as often as the policy says; :meth:`_run`, awaited.

        :param pace: what counts the calls, where this is one of many; the first has waited for its turn.
        """
        attempts = attempts or Attempts()
        settings, until = await self._asettings(), time.monotonic() + self.max_seconds
        async with self._opened() as transport:

            async def perform(want: TokenWanted | Request) -> Token | Response:
                if isinstance(want, TokenWanted):
                    token = await self._atoken(transport, want.refused, until)
                    _left(until)
                    return token
                return await self._asend(transport, want, until)

            async def attempt() -> CallResult:
                if pace and attempts.made:
                    pace.count()
                with self._logged(call, attempts, logging.DEBUG if pace else logging.INFO) as done:
                    done.append(await _adrive(exchange(call, attempts, time.time, settings.secrets), perform))
                return done[0]

            def before_wait(state: RetryCallState) -> None:
                if pace and state.outcome and isinstance(state.outcome.exception(), ThrottledError):
                    pace.hold(state.upcoming_sleep)

            try:
                return await AsyncRetrying(**self._policy(call), before_sleep=before_wait)(attempt)
            except DingTalkError as error:
                error.uncertain = attempts.uncertain
                raise error.with_traceback(None) from None

    def _policy(self, call: Call) -> Policy:
        policy = retry_policy(call, self.max_attempts, self.max_seconds)
        if self.max_wait is not None:
            longest = self.max_wait
            policy["stop"] |= lambda state: state.upcoming_sleep > longest  # type: ignore[operator]
        return policy

    def _policy_allows(self, wait: float) -> bool:
        """Return whether a call can wait so long before it is tried again."""
        return wait < self.max_seconds and (self.max_wait is None or wait <= self.max_wait)

    @contextmanager
    def _logged(
        self, call: Call, attempts: Attempts, level: int = logging.INFO
    ) -> Iterator[list[CallResult]]:
        """Log one line for an attempt of a call: which, how it ended, the request id, how long it took.

        What has bought a token has logged that, and leaves nothing that was done.
        """
        attempts.made += 1
        began = time.perf_counter()
        done: list[CallResult] = []

        def line(outcome: object) -> tuple[str, str, object, int, float]:
            took = (time.perf_counter() - began) * 1000
            return "%s: %s [attempt %d, %.0f ms]", call.name, outcome, attempts.made, took

        try:
            yield done
        except DingTalkError as error:
            error.attempts = attempts.made
            if isinstance(error, AddressBannedError) and error.http_status and error.retry_after:
                ban_of(self.settings).put(time.time(), error.retry_after)
            self.log.warning(*line(error.summary))
            raise
        for good in done:
            self.log.log(level, *line(f"done (request id {good.request_id or '-'})"))

    def _token(self, refused: Token | None, until: float) -> Token:
        """Return a token other than the refused one: the shared one, or else a new one."""
        if self.settings.static_token:
            return self.settings.static_token
        shelf = shelf_of(self.settings)
        token = shelf.token(refused, time.time())
        if token is None:
            with _holding(shelf, until):
                token = shelf.token(refused, time.time()) or self._buy(until)
        if token != self._masked:  # it may have been bought by another process
            _mask([token.value])
            self._masked = token
        return token

    async def _atoken(self, transport: AsyncTransport, refused: Token | None, until: float) -> Token:
        """Return a token other than the refused one; :meth:`_token`, awaited."""
        if self.settings.static_token:
            return self.settings.static_token
        shelf = shelf_of(self.settings)
        token = shelf.token(refused, time.time())
        if token is None:
            async with _aholding(shelf, until):
                token = shelf.token(refused, time.time()) or await self._abuy(transport, until)
        if token != self._masked:
            await _amask([token.value])
            self._masked = token
        return token

    async def _awarm(self) -> None:
        """See to it that there is an access token, before many calls find out at once that there is none."""
        settings = await self._asettings()
        if settings.app is None:
            return
        call, attempts, until = settings.app.token_call(), Attempts(), time.monotonic() + self.max_seconds
        async with self._opened() as transport:

            async def attempt() -> None:
                with self._logged(call, attempts):
                    await self._atoken(transport, None, until)

            try:
                await AsyncRetrying(**self._policy(call))(attempt)
            except DingTalkError as error:
                raise error.with_traceback(None) from None

    def _buy(self, until: float) -> Token:
        """Buy a token and put it on the shelf; the caller holds the right to."""
        app, ticket = _app(self.settings), _pushed_ticket(self.settings)
        if ticket:
            _mask([ticket])
        token = _drive(purchase(app, time.time, ticket), lambda request: self._send(request, until))
        return self._shelved(token)

    async def _abuy(self, transport: AsyncTransport, until: float) -> Token:
        """Buy a token; :meth:`_buy`, awaited."""
        app, ticket = _app(self.settings), _pushed_ticket(self.settings)
        if ticket:
            await _amask([ticket])
        token = await _adrive(
            purchase(app, time.time, ticket), lambda request: self._asend(transport, request, until)
        )
        return self._shelved(token)

    def _shelved(self, token: Token) -> Token:
        app = _app(self.settings)
        self.log.info("access token: bought for the %s %s", app.kind, app.client_id)
        shelf_of(self.settings).put(token)
        return token

    def _send(self, request: Request, until: float) -> Response:
        self._check_ban()
        return self._transport.send(request, _left(until))

    async def _asend(self, transport: AsyncTransport, request: Request, until: float) -> Response:
        self._check_ban()
        return await transport.send(request, _left(until))

    def _check_ban(self) -> None:
        """Refuse to call DingTalk while the address is banned: each call would prolong the ban."""
        left = ban_of(self.settings).seconds_left(time.time())
        if left:
            raise AddressBannedError(
                "this public address is banned, as an earlier call was told; nothing was sent",
                code="addressBanned",
                retry_after=left,
            )


@dataclass
class _Block:
    """The connections of an event loop, and how many blocks and calls use them."""

    transport: AsyncTransport
    users: int = 0


@contextmanager
def _unlocking_at_last(earlier: BaseException | None = None) -> Iterator[None]:
    """Unlock after a block: an ended meeting needs no unlock, and an error hides none that came before it."""
    try:
        yield
    except ConferenceClosedError:
        pass
    except DingTalkError as error:
        raise error from earlier


def _drive(steps: Generator[Any, Any, Any], perform: Callable[[Any], Any]) -> Any:
    """Drive an exchange to its end: do each thing it wants, and hand it the result or the error."""
    try:
        want = next(steps)
        while True:
            try:
                result = perform(want)
            except DingTalkError as error:  # noqa: PERF203
                want = steps.throw(error)
            else:
                want = steps.send(result)
    except StopIteration as end:
        return end.value


async def _adrive(steps: Generator[Any, Any, Any], perform: Callable[[Any], Awaitable[Any]]) -> Any:
    """Drive an exchange to its end; :func:`_drive`, awaited."""
    try:
        want = next(steps)
        while True:
            try:
                result = await perform(want)
            except DingTalkError as error:  # noqa: PERF203
                want = steps.throw(error)
            else:
                want = steps.send(result)
    except StopIteration as end:
        return end.value


@contextmanager
def _holding(shelf: Shelf, until: float) -> Iterator[None]:
    """Hold the right to buy a token, or go on without it when whoever has it does not come to an end."""
    give_up, polls = _give_up_waiting(until), iter(_LOCK_POLLS)
    while not (held := shelf.try_lock()) and time.monotonic() < give_up:
        time.sleep(next(polls, _LOCK_POLL_SECONDS))
    try:
        yield
    finally:
        if held:
            shelf.unlock()


@asynccontextmanager
async def _aholding(shelf: Shelf, until: float) -> AsyncIterator[None]:
    """Hold the right to buy a token; :func:`_holding`, awaited."""
    give_up, polls = _give_up_waiting(until), iter(_LOCK_POLLS)
    while not (held := shelf.try_lock()) and time.monotonic() < give_up:
        await asyncio.sleep(next(polls, _LOCK_POLL_SECONDS))
    try:
        yield
    finally:
        if held:
            shelf.unlock()


def _give_up_waiting(until: float) -> float:
    """Return when to stop waiting for the lock, with half of what is left kept for the call itself."""
    now = time.monotonic()
    return now + min(LOCK_SECONDS, (until - now) / 2)


def _left(until: float) -> float:
    """Return the seconds that are left of a call's time."""
    left = until - time.monotonic()
    if left <= 0:
        raise CallTimeoutError("no time is left for the call (max_seconds)", code="timeout")
    return left


def _mask(secrets: Iterable[str]) -> None:
    """Tell Airflow's masker what must be in no log."""
    for secret in secrets:
        mask_secret(secret)


# In the triggerer, the masker waits for an answer of the supervisor's. Not in asgiref's own thread, which a
# forked process lacks.
_amask = sync_to_async(_mask, thread_sensitive=False)


def _app(settings: Settings) -> App:
    return cast("App", settings.app)  # there is no static token, else nobody would ask


def _pushed_ticket(settings: Settings) -> str | None:
    """Return the suite ticket that DingTalk pushed last, where the app needs one and it is known."""
    return suite_ticket_of(settings).pushed if _app(settings).suite_ticket else None


def _lock_result(action: str, conference_id: str, good: CallResult, attempts: Attempts) -> LockResult:
    return {
        "conference_id": conference_id,
        "action": action,
        "success": True,
        "attempts": attempts.made,
        "request_id": good.request_id,
    }


@contextmanager
def _whatever_it_may_read() -> Iterator[None]:
    """Take it that DingTalk accepts a token which it says may not read: locking needs another permission."""
    try:
        yield
    except PermissionDeniedError as error:
        if error.code != "Forbidden.AccessDenied.AccessTokenPermissionDenied":
            raise


def _accepted(settings: Settings) -> str:
    return f"{settings.base_url} accepts the access token of the connection."


def _bought(settings: Settings, token: Token) -> str:
    app = _app(settings)
    until = datetime.fromtimestamp(token.bought_at + (token.lifetime or 0), timezone.utc)
    return (
        f"{settings.base_url} gave an access token for the {app.kind} {app.client_id}, "
        f"valid until {until:%Y-%m-%d %H:%M:%S} UTC."
    )

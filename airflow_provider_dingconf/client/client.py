"""``DingTalkClient``: the calls of one Airflow connection, with access token, retries and rate limit.

All methods are coroutines, and run in the event loop that awaits them. ``dingtalk/`` decides what to send,
what a response means, and whether to retry a call. ``http`` sends it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tenacity import AsyncRetrying

from airflow_provider_dingconf.client.bulk import ConferenceResult, RateLimiter, each_meeting, limiter_of
from airflow_provider_dingconf.client.http import HttpSession
from airflow_provider_dingconf.client.sync import CLEAN_UP_SECONDS, is_background, shielded, within
from airflow_provider_dingconf.client.token_cache import address_ban_of, suite_ticket_of, token_cache_of
from airflow_provider_dingconf.dingtalk import errors as e
from airflow_provider_dingconf.dingtalk.calls import Call, lock_call
from airflow_provider_dingconf.dingtalk.conferences import (
    BATCH,
    check_conference_ids,
    conference_call,
    list_call,
    query_call,
    the_running,
)
from airflow_provider_dingconf.dingtalk.events import open_call
from airflow_provider_dingconf.dingtalk.limits import CONCURRENCY, MAX_ATTEMPTS, MAX_SECONDS
from airflow_provider_dingconf.dingtalk.responses import read_response
from airflow_provider_dingconf.dingtalk.retries import retry_policy
from airflow_provider_dingconf.dingtalk.tokens import read_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence

    from tenacity import RetryCallState
    from typing_extensions import Self

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.client.token_cache import AddressBan, TokenCache
    from airflow_provider_dingconf.dingtalk.conferences import Conference, Reference
    from airflow_provider_dingconf.dingtalk.events import Address
    from airflow_provider_dingconf.dingtalk.responses import CallResult
    from airflow_provider_dingconf.dingtalk.tokens import App, Token

_TOOK_NO_EFFECT = (e.RefusedError, e.ThrottledError, e.RedirectError, e.CertificateError)
"""After any other error, a call that was sent is uncertain: it may have taken effect."""

T = TypeVar("T")


async def _never() -> bool:
    return False


@dataclass
class _Attempts:
    """The attempts of one call."""

    call: Call
    limiter: RateLimiter | None = None  # of a bulk call: the first attempt has waited for it
    quiet: bool = False  # whether to log only attempts that fail
    secrets: tuple[str, ...] = ()  # in the call, beside the token and the connection's
    made: int = 0  # how many there were
    refused: Token | None = None  # the token that DingTalk refused: a fresh one is fetched once
    uncertain: bool = False  # whether the call may have taken effect

    def before_wait(self, state: RetryCallState) -> None:
        """Delay all calls of a bulk if DingTalk asks for a wait."""
        if self.limiter and state.outcome and isinstance(state.outcome.exception(), e.ThrottledError):
            self.limiter.hold(state.upcoming_sleep)


@dataclass(eq=False, repr=False)
class DingTalkClient:
    """Makes calls to DingTalk.

    Connections stay open between calls within ``async with client:``; in the background event loop, until
    :meth:`close`.
    """

    settings: Settings
    max_attempts: int  # of one call
    max_seconds: float  # of one call, including the waits between attempts
    mask: Callable[[Iterable[str]], Awaitable[None]]  # is awaited with each new secret, before its use
    # Receives each request's call and its error, if any; also those for access tokens. It must not raise.
    count: Callable[[Call, BaseException | None], object]
    log: logging.Logger
    # Returns whether a newer process has locked the same meetings: they must then stay locked.
    is_superseded: Callable[[], Awaitable[bool]] = _never
    sessions: dict[asyncio.AbstractEventLoop, HttpSession] = field(default_factory=dict)
    _masked_token: Token | None = None

    @property
    def limiter(self) -> RateLimiter:
        """The rate limiter that all bulk locks and polls of the app share."""
        return limiter_of(self.settings)

    @cached_property
    def _ban(self) -> AddressBan:
        return address_ban_of(self.settings)

    @property
    def _app(self) -> App:
        return cast("App", self.settings.app)  # there is one, unless the token is static

    @cached_property
    def _tokens(self) -> TokenCache:
        return token_cache_of(self.settings)

    # Connections

    async def __aenter__(self) -> Self:
        """Keep the connections to DingTalk open in this event loop until the block ends."""
        loop = asyncio.get_running_loop()
        if loop not in self.sessions:
            self.sessions[loop] = HttpSession(self.settings, stays_open=is_background(loop))
        self.sessions[loop].users += 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections, once no call uses them."""
        session = self.sessions[asyncio.get_running_loop()]
        session.users -= 1
        if not session.stays_open:
            await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop, once no call uses them."""
        loop = asyncio.get_running_loop()
        session = self.sessions.get(loop)
        if session is not None:
            session.stays_open = False
            if not session.users:
                del self.sessions[loop]
                await session.close()

    # One call

    def call(self, call: Call) -> Coroutine[Any, Any, CallResult]:
        """Return the coroutine that makes a call, and retries it as the errors allow."""
        attempts = _Attempts(call)
        return self._retried(attempts, partial(self._exchange, attempts))

    async def _retried(self, attempts: _Attempts, work: Callable[[float], Awaitable[T]]) -> T:
        """Do the work of a call, which receives its deadline, and retry it as the errors allow."""
        repeatable, until = attempts.call.endpoint.repeatable, time.monotonic() + self.max_seconds
        failed: list[e.TransientError] = []

        async def again() -> T:
            if failed:
                raise failed.pop()  # tenacity decides whether there is another attempt
            return await self._attempt(attempts, work, until)

        async with self:
            try:
                try:  # most calls need only one attempt, and tenacity is slow
                    return await self._attempt(attempts, work, until)
                except e.TransientError as error:
                    failed.append(error)
                policy = retry_policy(repeatable, self.max_attempts, until - time.monotonic())
                return await AsyncRetrying(**policy, before_sleep=attempts.before_wait)(again)
            except e.DingTalkError as error:
                if error.uncertain and not repeatable:
                    error.must_not_be_repeated()
                raise error.with_traceback(None) from None  # a log that prints locals would print secrets

    async def _attempt(self, attempts: _Attempts, work: Callable[[float], Awaitable[T]], until: float) -> T:
        """Make one attempt, and log one line about it: the call, the result, the request id and the time."""
        attempts.made += 1
        if attempts.limiter and attempts.made > 1:
            attempts.limiter.count()
        level = logging.DEBUG if attempts.quiet else logging.INFO
        began, outcome = time.perf_counter(), "interrupted"
        try:
            result = await work(until)
            outcome = f"done (request id {getattr(result, 'request_id', None) or '-'})"
            return result
        except e.DingTalkError as error:
            error.attempts, error.uncertain = attempts.made, attempts.uncertain
            if isinstance(error, e.AddressBannedError) and error.http_status and error.retry_after:
                self._ban.put(time.monotonic(), error.retry_after)
            level, outcome = logging.WARNING, error.summary
            raise
        finally:
            took = (time.perf_counter() - began) * 1000
            facts = (attempts.call.name, outcome, attempts.made, took)
            self.log.log(level, "%s: %s [attempt %d, %.0f ms]", *facts)

    async def _exchange(self, attempts: _Attempts, until: float) -> CallResult:
        """Get a token, send the call and read the response; if the token is refused, repeat that once."""
        call, token = attempts.call, None
        while True:
            if not call.endpoint.with_credentials:
                token = self.settings.static_token or await self._token(attempts.refused, until)
            self._check_ban()
            session, seconds = self.sessions[asyncio.get_running_loop()], _seconds_left(until)
            sent: list[str] = []
            try:
                response = await session.send(call.request(token.value if token else None), seconds, sent)
                hidden = (*self.settings.secrets, *attempts.secrets, *([token.value] if token else ()))
                result = read_response(call, response, time.time(), hidden)
            except BaseException as error:
                self.count(call, error)
                if token and sent and not isinstance(error, _TOOK_NO_EFFECT):
                    attempts.uncertain = True
                is_refused = isinstance(error, e.AccessTokenError) and attempts.refused is None
                if not is_refused or token is None or token.static:
                    raise
                attempts.refused = token
            else:
                self.count(call, None)
                attempts.uncertain = token is not None  # a cancellation from here on is to undo a lock
                result.attempts = attempts.made
                return result

    def _check_ban(self) -> None:
        """Raise an error if DingTalk banned this address: calls prolong a ban."""
        if banned := self._ban.seconds_left(time.monotonic()):
            lifted = f"delete {self._ban.file}" if self._ban.file else "restart this process"
            raise e.AddressBannedError(
                "DingTalk banned this public address, says an earlier response; nothing was sent. "
                f"If DingTalk has lifted the ban, {lifted}",
                code="addressBanned",
                retry_after=banned,
            )

    # Access tokens

    async def test(self) -> Token | None:
        """Fetch a token, or try a static one with the cheapest call that reads.

        :returns: the token; None for a static one.
        """
        if self.settings.app is None:
            try:
                await self.call(list_call(max_results=1))
            except e.PermissionDeniedError as error:  # the token may be good for locks only
                if not (error.code or "").endswith("AccessTokenPermissionDenied"):
                    raise
            return None
        client = copy.copy(self)
        client.max_attempts = 1
        return await client._obtain_token(client._fetch_token)

    async def _obtain_token(self, work: Callable[[float], Awaitable[Token]]) -> Token:
        """Obtain an access token with the retries of a call, and log only failures."""
        return await self._retried(_Attempts(self._app.token_call(), quiet=True), work)

    async def _token(self, refused: Token | None, until: float) -> Token:
        """Return a token other than the one that DingTalk refused: the shared one, or else a fresh one."""
        token = self._tokens.get(refused, time.monotonic())
        if token is None:
            # Keep half of the remaining time for the call itself.
            async with self._tokens.fetching(_seconds_left(until) / 2):
                token = self._tokens.get(refused, time.monotonic()) or await self._fetch_token(until)
        if token != self._masked_token:  # another process may have fetched it
            await self.mask([token.value])
            self._masked_token = token
        return token

    async def _fetch_token(self, until: float) -> Token:
        app, token = self._app, None
        pushed = suite_ticket_of(self.settings).pushed if app.suite_ticket else None
        if pushed and pushed != app.suite_ticket:
            await self.mask([pushed])
            try:
                token = await self._token_for(replace(app, suite_ticket=pushed), until)
            except e.CredentialsError as error:
                if error.code != "invalidSuiteTicket":
                    raise  # otherwise, the ticket of the Airflow connection may be newer
        token = token or await self._token_for(app, until)
        self.log.info("access token: fetched for the %s %s", app.kind, app.client_id)
        self._tokens.put(token, time.monotonic())
        return token

    async def _token_for(self, app: App, until: float) -> Token:
        call = replace(app.token_call(), read=partial(read_token, fetched_at=time.time()))
        return cast("Token", (await self._exchange(_Attempts(call, secrets=app.secrets), until)).content)

    # Meetings

    async def lock(
        self, action: str, meeting: Reference, limiter: RateLimiter | None = None
    ) -> ConferenceResult:
        """Lock or unlock a meeting. A lock that is cancelled before its response arrives is rolled back.

        :param limiter: that of a bulk. The call has waited for it, and is logged only if it fails.
        """
        attempts = _Attempts(lock_call(meeting, action), limiter, quiet=limiter is not None)
        try:
            result = await self._retried(attempts, partial(self._exchange, attempts))
        except asyncio.CancelledError:
            if action == "lock" and attempts.uncertain:
                await shielded(self.roll_back([meeting.value], quickly=True))
            raise
        return ConferenceResult(meeting.value, action, result.attempts, result.request_id)

    async def lock_all(
        self,
        action: str,
        meetings: Sequence[Reference],
        *,
        concurrency: int = CONCURRENCY,
        calls_per_second: float | None = None,
        on_result: Callable[[ConferenceResult], object] | None = None,
    ) -> list[ConferenceResult]:
        """Lock or unlock many meetings, some at a time, and return the results in their order.

        An error that concerns every meeting ends the work, as does a wait that does not fit into
        ``max_seconds``. A shorter wait delays all meetings.

        :param calls_per_second: a rate for this bulk only; None for the rate limiter of the app.
        :raises DingTalkError: there is no access token; no meeting was tried.
        """
        if not meetings:
            return []
        limiter = RateLimiter(calls_per_second) if calls_per_second else self.limiter
        ended_by: e.DingTalkError | None = None

        async def one(meeting: Reference) -> ConferenceResult:
            nonlocal ended_by
            if ended_by:
                return ConferenceResult(meeting.value, action, 0, error=ended_by)
            await limiter.wait()
            try:
                return await self.lock(action, meeting, limiter)
            except e.DingTalkError as error:
                wait = error.retry_after or 0.0
                if isinstance(error, e.ThrottledError) and error.repeat and wait < self.max_seconds:
                    limiter.hold(wait)
                elif error.concerns_all:
                    ended_by = copy.copy(error)
                    ended_by.uncertain = False  # the other meetings' calls are not sent
                return ConferenceResult(meeting.value, action, error.attempts, error.request_id, error)

        async with self:
            if self.settings.app is not None:
                # Before the calls: without a token, each of them would fail.
                await self._obtain_token(partial(self._token, None))
            return await each_meeting(meetings, one, concurrency, on_result)

    async def roll_back(
        self, conference_ids: Iterable[str], *, quickly: bool = False
    ) -> list[ConferenceResult]:
        """Unlock meetings that are or may be locked, unless superseded; raises nothing.

        :param quickly: whether the process is about to be killed. The roll-back then has
            :data:`~airflow_provider_dingconf.client.sync.CLEAN_UP_SECONDS`.
        """
        if await self.is_superseded():
            return []
        meetings = check_conference_ids(conference_ids)
        client = copy.copy(self)
        results: list[ConferenceResult] = []
        # Not the limits of the task's calls, which may be low: the roll-back must succeed.
        limits = (2, CLEAN_UP_SECONDS) if quickly else (MAX_ATTEMPTS, MAX_SECONDS)
        client.max_attempts, client.max_seconds = limits
        # Not the shared rate limiter, which has counted locks that were cancelled before they were sent.
        rate = self.settings.calls_per_second
        work = client.lock_all("unlock", meetings, calls_per_second=rate, on_result=results.append)
        cause: e.DingTalkError = e.CallTimeoutError("no time was left to unlock the meeting", code="timeout")
        try:
            await within(work, CLEAN_UP_SECONDS if quickly else None)
        except Exception as error:
            cause = error if isinstance(error, e.DingTalkError) else cause
        done = {result.conference_id: result for result in results}
        return [
            done.get(each.value) or ConferenceResult(each.value, "unlock", 0, None, cause)
            for each in meetings
        ]

    async def get_conference(self, reference: Reference) -> Conference:
        """Return a meeting; for a room code or a schedule, the one that is running."""
        if reference.name == "conference_id":
            return cast("Conference", (await self.call(conference_call(reference))).content)
        return the_running(await self.find_conferences(reference), reference)

    async def find_conferences(self, reference: Reference) -> list[Conference]:
        """Return the meetings of a room code or a schedule, whatever their status."""
        return [each async for each in self.listed(partial(list_call, reference))]

    async def listed(self, call: Callable[..., Call]) -> AsyncIterator[Any]:
        """Yield the items of a list; each page is requested when it is needed.

        :param call: returns the call for a page, given the tokens of the earlier pages.
        """
        tokens: list[str] = []
        while True:
            page = (await self.call(call(*tokens))).content
            for item in page.items:
                yield item
            if page.next_token is None:
                return
            tokens.append(page.next_token)

    async def running_of(self, conference_ids: Sequence[str]) -> dict[str, Conference]:
        """Return the running ones of some meetings, by id, with one call for each hundred."""
        found: dict[str, Conference] = {}
        for first in range(0, len(conference_ids), BATCH):
            result = await self.call(query_call(conference_ids[first : first + BATCH]))
            found |= result.content
        return found

    async def events_address(self) -> Address:
        """Request the address of the app's event stream, for one connection."""
        return cast("Address", (await self.call(open_call(self.settings.events_app))).content)


def _seconds_left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise e.CallTimeoutError("no time is left for the call", code="timeout", remedy="Raise max_seconds.")
    return left

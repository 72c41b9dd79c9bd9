"""DingTalk's error codes as a table, and the exceptions made from it.

Every way in which a call can end badly is one of these::

    DingTalkError
    ├── InvalidInputError                 found before anything was sent (also a ValueError)
    │   ├── InvalidConnectionError
    │   └── InvalidConferenceIdError
    ├── RefusedError                      DingTalk understood, and said no
    │   ├── ConferenceClosedError
    │   ├── ConferenceNotRunningError
    │   ├── ConferenceNotFoundError
    │   ├── ParameterError
    │   ├── PermissionDeniedError
    │   ├── CredentialsError
    │   └── AccessTokenError
    ├── TransientError                    the same call may succeed later
    │   ├── ServerError
    │   ├── AnswerError
    │   ├── ThrottledError
    │   │   └── AddressBannedError
    │   └── TransportError
    │       ├── ConnectionLostError
    │       └── CallTimeoutError
    ├── CertificateError
    ├── RedirectError
    └── ConferencesError                  of many meetings, some failed

An exception class says what is done about an error; a row of :data:`ERRORS` says which code is of
which class, what it means and what can help. A code is compared exactly; where it is not in the
table, the HTTP status decides (:func:`error_class`).

Source: `Lock a meeting <https://help.dingtalk.io/open/development/api-lockconference>`__ and
`Global error codes <https://help.dingtalk.io/open/development/server-api-error-codes-1>`__.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Outcome(str, Enum):
    """What becomes of a task whose call ended in a :class:`DingTalkError`."""

    FAIL = "fail"
    """The task fails, and Airflow does not retry it."""
    SKIP = "skip"
    """The task is skipped."""
    RETRY = "retry"
    """The task fails, and Airflow's own ``retries`` apply."""
    SUCCEED = "succeed"
    """The task succeeds, although the call did not."""


class DingTalkError(Exception):
    """Any call to DingTalk that did not do what was asked.

    :param message: what happened, in DingTalk's words where DingTalk spoke.
    :param code: DingTalk's error code, or a code of this package's own (:data:`ERRORS` lists both);
        None where there is none.
    :param http_status: the HTTP status of the answer; None where there was no answer.
    :param request_id: what DingTalk's support asks for; None where DingTalk gave none.
    :param retry_after: seconds to wait before the call can succeed; None where not known.
    """

    outcome: Outcome = Outcome.FAIL
    repeat: ClassVar[bool] = False
    meaning: str = "DingTalk refused the call."
    remedy: str = "Look the code up in DingTalk's global error codes."

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        http_status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.http_status = http_status
        self.request_id = request_id
        self.retry_after = retry_after
        self.attempts = 0
        """How often the call was tried before this error was raised."""
        self.in_doubt = False
        """Whether the call may have taken effect all the same: it was sent, and DingTalk did not say no."""

    def __reduce__(self) -> tuple[type[DingTalkError], tuple[object, ...], dict[str, object]]:
        """Keep the keyword-only fields when a worker pickles the exception."""
        return type(self), (self.message,), self.__dict__

    def as_dict(self) -> dict[str, object]:
        """Return it as plain values: fit for an XCom or a trigger's event."""
        names = ("message", "code", "http_status", "request_id", "retry_after", "in_doubt")
        return {"type": type(self).__name__, **{name: getattr(self, name) for name in names}}

    @staticmethod
    def from_dict(told: Mapping[str, Any]) -> DingTalkError:
        """Return the error that :meth:`as_dict` told of."""
        facts = {**told}
        kind, in_doubt = _classes(DingTalkError)[facts.pop("type")], facts.pop("in_doubt")
        error = kind(facts.pop("message"), **facts)
        error.in_doubt = in_doubt
        return error

    @property
    def concerns_all(self) -> bool:
        """Whether a call for any other meeting would end in the same error."""
        return concerns_every_meeting(self) or isinstance(self, ThrottledError)

    def outcome_with(self, on_error: Mapping[str, Outcome]) -> Outcome:
        """Return the outcome, by the overrides of ``on_error`` if one applies."""
        return on_error.get(self.code or "", self.outcome)

    @property
    def summary(self) -> str:
        """What happened, with all that identifies it: one line."""
        facts = [
            f"HTTP {self.http_status}" if self.http_status else "",
            f"request id {self.request_id}" if self.request_id else "",
            f"retry after {self.retry_after:g} s" if self.retry_after is not None else "",
        ]
        said = self.message if self.code in {None, self.message} else f"{self.code}: {self.message}"
        known = ", ".join(fact for fact in facts if fact)
        return f"{said} ({known})" if known else said

    def __str__(self) -> str:
        """Say what happened, what it means, and what can help."""
        about = ERRORS.get(self.code or "", self)
        return " ".join(part for part in (f"{self.summary}.", about.meaning, about.remedy) if part)


def _classes(kind: type[DingTalkError]) -> dict[str, type[DingTalkError]]:
    """Return a class and all that are made from it, by name."""
    found = {kind.__name__: kind}
    for each in kind.__subclasses__():
        found |= _classes(each)
    return found


class InvalidInputError(DingTalkError, ValueError):
    """Raised for input that is wrong whatever DingTalk would say: nothing was sent."""

    meaning = "Nothing was sent to DingTalk."
    remedy = ""


class InvalidConnectionError(InvalidInputError):
    """Raised when a field of the Airflow connection is missing, contradictory or unknown."""


class InvalidConferenceIdError(InvalidInputError):
    """Raised when a conference id is not one non-empty path segment."""


class RefusedError(DingTalkError):
    """Raised when DingTalk refused a call for a reason that repeating it does not change."""


class ConferenceClosedError(RefusedError):
    """Raised when the meeting has ended."""

    outcome = Outcome.SKIP


class ConferenceNotRunningError(RefusedError):
    """Raised when no meeting, or more than one, is running under a room code or a schedule."""


class ConferenceNotFoundError(RefusedError):
    """Raised when DingTalk knows no such meeting."""


class ParameterError(RefusedError):
    """Raised when DingTalk does not accept the parameters of a call."""


class PermissionDeniedError(RefusedError):
    """Raised when the app may not make the call, or not for this meeting."""

    meaning = "The app may not make this call."
    remedy = "An administrator has to allow it."


class CredentialsError(RefusedError):
    """Raised when DingTalk gives no access token for the credentials of the connection."""

    meaning = "DingTalk gave no access token for the credentials of the connection."
    remedy = "Check Client ID, Client Secret and organisation in the connection."


class AccessTokenError(RefusedError):
    """Raised when DingTalk refuses the access token, and a fresh one as well, unless it is a static one."""

    meaning = "The access token is missing, expired, revoked or not known."
    remedy = "Check that the connection belongs to this host; a static access token has to be replaced."


class TransientError(DingTalkError):
    """Raised when the same call may succeed later: it is repeated within the call, then by Airflow."""

    outcome = Outcome.RETRY
    repeat = True
    meaning = "The call may succeed later."
    remedy = "Let Airflow retry the task."


class ServerError(TransientError):
    """Raised when the fault is on DingTalk's side (HTTP 5xx)."""

    meaning = "DingTalk has a fault of its own."


class AnswerError(TransientError):
    """Raised when an answer is not what DingTalk documents: no JSON, another shape, no ``success``."""


class ThrottledError(TransientError):
    """Raised when DingTalk takes no more calls for now."""

    meaning = "DingTalk is being called too often."
    remedy = "Wait, and spread the calls out."


class AddressBannedError(ThrottledError):
    """Raised when DingTalk refuses everything from this public address; it is not called again meanwhile."""

    repeat = False


class TransportError(TransientError):
    """Raised when there was no complete answer."""


class ConnectionLostError(TransportError):
    """Raised when DingTalk could not be reached, or hung up before the answer was complete."""


class CallTimeoutError(TransportError):
    """Raised when DingTalk did not connect or answer in time."""


class CertificateError(DingTalkError):
    """Raised when the server's TLS certificate is not that of the host asked for: nothing was sent."""


class RedirectError(DingTalkError):
    """Raised when the answer is a redirect. It is never followed: the access token would go along."""


class ConferencesError(DingTalkError):
    """Raised when of many meetings some could not be locked or unlocked."""

    meaning = ""
    remedy = "The task's log says which meetings, and why."

    @classmethod
    def of(cls, action: str, errors: Mapping[str, DingTalkError], total: int) -> ConferencesError:
        """Return the error of some meetings.

        :param action: ``lock`` or ``unlock``.
        :param errors: what went wrong, by conference id; not empty.
        :param total: how many meetings there were.
        """
        first_id, first = next(iter(errors.items()))
        rest = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        return cls(
            f"{action} failed for {len(errors)} of {total} meetings: {first_id}: {first.summary}{rest}"
        )


@dataclass(frozen=True)
class ErrorCode:
    """One row of the table: a code, and all this package knows of it."""

    code: str
    http_status: tuple[int, ...]
    """The statuses documented for the code; empty where there is no answer or no status is documented."""
    error: type[DingTalkError]
    meaning: str
    remedy: str
    wait: float | None = None
    """Seconds until the call can succeed, where DingTalk names none; None: back off."""

    @property
    def outcome(self) -> Outcome:
        """What becomes of a task by default."""
        return self.error.outcome

    @property
    def sent_by_dingtalk(self) -> bool:
        """Whether DingTalk sends the code; otherwise this package names a condition with it."""
        return self.code not in LOCAL_CODES


_FORBIDDEN = "Forbidden.AccessDenied."
_TRY_LATER = "Let Airflow retry the task; if it lasts, give the request id to DingTalk's support."
_ADMIN = "An administrator of the organisation has to allow it."
_GRANT = (
    "An administrator grants the app VideoConference.Conference.Write "
    "(VideoConference.Conference.Read for reading calls)."
)
_SLOW_DOWN = "Wait, then call less often; pools and max_active_tis_per_dag spread the calls out."
_PER_SECOND = "More calls per second than DingTalk allows"
_PER_MINUTE = "More calls per minute than DingTalk allows"
_MINUTE = 60.0
_BAN = 300.0


def _rows() -> Iterable[ErrorCode]:
    row = ErrorCode
    # The lock call's own five.
    yield row(
        "paramsError",
        (400,),
        ParameterError,
        "A parameter is wrong.",
        "Check the conference id: it is neither the room code nor the schedule's id.",
    )
    yield row(
        "confClosed",
        (400,),
        ConferenceClosedError,
        "The meeting has ended.",
        'Nothing is left to lock; on_error={"confClosed": "fail"} makes it a failure.',
    )
    yield row(
        "noPermission",
        (400, 403),
        PermissionDeniedError,
        "The app may not act on this meeting.",
        "Check that the meeting belongs to the organisation of the connection, and the app's permissions.",
    )
    yield row(
        "commandError",
        (400,),
        ParameterError,
        "DingTalk does not accept the command for this meeting.",
        "Check that the meeting is running and of a kind that can be locked.",
    )
    yield row("systemError", (500,), ServerError, "DingTalk has a fault of its own.", _TRY_LATER)
    # The calls that tell of meetings.
    yield row(
        "roomNotFound",
        (404,),
        ConferenceNotFoundError,
        "DingTalk knows no such meeting.",
        "Check the conference id: it is neither the room code nor the schedule's id.",
    )
    yield row(
        "invalidRoomCode",
        (400,),
        ParameterError,
        "DingTalk does not accept the room code.",
        "Check the room code; a person sees it in the meeting's window.",
    )
    for code in ("missingRoomId", "missingRoomCode", "paramError", "unknownUserError"):
        yield row(
            code,
            (400,),
            ParameterError,
            "A parameter is wrong.",
            "Check what names the meeting: conference id, room code or schedule id.",
        )
    yield row(
        "resourceClose",
        (400,),
        ConferenceClosedError,
        "The meeting has ended.",
        'Nothing is left to do; on_error={"resourceClose": "fail"} makes it a failure.',
    )
    yield row(
        "confNotRunning",
        (),
        ConferenceNotRunningError,
        "A room code or a schedule can stand for several meetings; the one that is running is taken.",
        "Wait for it with ConferenceSensor, or name one meeting by its conference_id.",
    )
    # Access tokens.
    yield row(
        "InvalidAuthentication",
        (400, 401),
        AccessTokenError,
        "The access token is expired, revoked or not known.",
        "Check that the connection's app and host belong together; "
        "a static access token has to be replaced by a new one in Access token.",
    )
    yield row(
        "invalidClientIdOrSecret",
        (400,),
        CredentialsError,
        "Client ID and Client Secret do not belong together.",
        "Compare the connection's Client ID (login) and Client Secret (password) with the app's own.",
    )
    yield row(
        "invalidSuiteKey",
        (400,),
        CredentialsError,
        "The Client ID (SuiteKey) is not that of a third-party app.",
        "Check the Client ID (login) of the connection; for an internal app remove the suite ticket.",
    )
    yield row(
        "invalidSuiteTicket",
        (400,),
        CredentialsError,
        "The suite ticket is not, or no longer, valid.",
        "Put DingTalk's newest one into Suite ticket, or leave it empty for the unified token call.",
    )
    yield row(
        "invalidAuthInfo",
        (400,),
        CredentialsError,
        "The organisation has not authorised the third-party app.",
        "Check Organisation (corpId), and that the organisation has the app installed.",
    )
    yield row(
        "invalid.client",
        (400,),
        CredentialsError,
        "Client ID and Client Secret do not belong together.",
        "Compare the connection's Client ID (login) and Client Secret (password) with the app's own.",
    )
    yield row(
        "authFailed",
        (401,),
        CredentialsError,
        "Client ID and Client Secret do not belong together.",
        "Compare the connection's Client ID (login) and Client Secret (password) with the app's own.",
    )
    yield row(
        "unsupported.grant.type",
        (400,),
        CredentialsError,
        "DingTalk does not give this app a token by client credentials.",
        "Leave Organisation (corpId) empty for an internal app; a third-party app needs a Suite ticket.",
    )
    yield row(
        "unauthorized.client",
        (401,),
        CredentialsError,
        "The app may not act for this organisation.",
        "Check Organisation (corpId), and that the organisation has authorised the app.",
    )
    # Permission.
    yield row(
        _FORBIDDEN + "AccessTokenPermissionDenied",
        (403,),
        PermissionDeniedError,
        "The app lacks the permission point of this call.",
        _GRANT,
    )
    yield row(
        _FORBIDDEN + "IpNotInWhiteList",
        (403,),
        PermissionDeniedError,
        "The address of this host is not on the app's list.",
        "An administrator adds the public address of this host to the app's server egress addresses.",
    )
    yield row(
        "orgAccessForbidden",
        (400, 403),
        PermissionDeniedError,
        "The app may not act for this organisation.",
        _ADMIN,
    )
    # Throttling.
    for suffix in ("QpsLimitForApi", "QpsLimitForAppkeyAndApi", "QpsLimitForSuitekeyAndOrgAndApi"):
        yield row(_FORBIDDEN + suffix, (403,), ThrottledError, f"{_PER_SECOND}.", _SLOW_DOWN, wait=1.0)
    for suffix in ("QpmLimitForAppkeyAndApi", "QpmLimitForSuitekeyAndOrgAndApi"):
        yield row(_FORBIDDEN + suffix, (403,), ThrottledError, f"{_PER_MINUTE}.", _SLOW_DOWN, wait=_MINUTE)
    yield row(
        "system.busy", (429, 500, 503), ThrottledError, "DingTalk is busy, or called too often.", _SLOW_DOWN
    )
    yield row("systemBusy", (429,), ThrottledError, "DingTalk is busy, or called too often.", _SLOW_DOWN)
    for number in range(90002, 90019):
        yield row(
            str(number), (), ThrottledError, "A rate limit of DingTalk's, in its older form.", _SLOW_DOWN
        )
    # DingTalk's side.
    yield row("serviceBusy", (500, 503), ServerError, "DingTalk is overloaded.", _TRY_LATER)
    yield row("internalError", (500, 503), ServerError, "DingTalk has a fault of its own.", _TRY_LATER)
    yield row("server.error", (500,), ServerError, "DingTalk has a fault of its own.", _TRY_LATER)
    # Conditions that DingTalk has no code for.
    yield row(
        "addressBanned",
        (),
        AddressBannedError,
        "DingTalk refuses every call from this public address for some minutes.",
        "Call nothing until it is over; all apps behind the address share its limit of 10,000 calls in 20 s.",
        wait=_BAN,
    )
    yield row(
        "unreadableAnswer",
        (),
        AnswerError,
        "The answer is not the JSON that DingTalk documents.",
        "Check that the host of the connection is DingTalk's, and what proxies stand between.",
    )
    yield row(
        "notConfirmed",
        (200,),
        AnswerError,
        "DingTalk did not confirm that it did what was asked.",
        _TRY_LATER,
    )
    yield row(
        "connectionLost",
        (),
        ConnectionLostError,
        "DingTalk could not be reached, or hung up.",
        "Check the host of the connection, name resolution, proxies and firewalls.",
    )
    yield row(
        "timeout",
        (),
        CallTimeoutError,
        "DingTalk did not answer in time.",
        "Check the network; timeout in the connection's extra gives a call more time.",
    )
    yield row(
        "badCertificate",
        (),
        CertificateError,
        "The server could not prove that it is the host of the connection.",
        "Check the host; where a proxy re-signs traffic, name its certificate authority in verify.",
    )
    yield row(
        "redirect",
        (301, 302, 303, 307, 308),
        RedirectError,
        "The host answers with a redirect, which is never followed.",
        "Put DingTalk's own host into the connection.",
    )


LOCAL_CODES = frozenset(
    {
        "confNotRunning",
        "addressBanned",
        "unreadableAnswer",
        "notConfirmed",
        "connectionLost",
        "timeout",
        "badCertificate",
        "redirect",
    }
)
"""Codes of this package's own, for conditions that DingTalk has no code for."""

ERRORS: dict[str, ErrorCode] = {row.code: row for row in _rows()}
"""The table of error codes, by code."""


def error_class(code: str | None, http_status: int) -> type[DingTalkError]:
    """Return the exception class for an error answer: by its code, else by its HTTP status.

    :param code: the code of the answer's body, compared exactly; None where it has none.
    :param http_status: the HTTP status of the answer.
    """
    row = ERRORS.get(code or "")
    if row is not None:
        return row.error
    if http_status == 401:
        return AccessTokenError
    if http_status == 403:
        return PermissionDeniedError
    if http_status == 429:
        return ThrottledError
    if http_status >= 500:
        return ServerError
    if http_status >= 400:
        return RefusedError
    return AnswerError


_ABOUT_THE_APP = frozenset(
    {_FORBIDDEN + "AccessTokenPermissionDenied", _FORBIDDEN + "IpNotInWhiteList", "orgAccessForbidden"}
    | {_FORBIDDEN + "ApiCountLimitForOrg", "90020"}
)


def concerns_every_meeting(error: DingTalkError) -> bool:
    """Return whether an error would be met with any other meeting too, so that trying it is a call wasted."""
    kinds = (CredentialsError, AccessTokenError, AddressBannedError, CertificateError, RedirectError)
    return isinstance(error, kinds) or error.code in _ABOUT_THE_APP

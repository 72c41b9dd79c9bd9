"""The exceptions: every way in which a call to DingTalk can fail.

::

    DingTalkError                         a call failed
    ├── InvalidInputError                 found before anything was sent (also a ValueError)
    │   ├── InvalidConnectionError        a field of the Airflow connection is wrong
    │   └── InvalidConferenceIdError      a conference id is not one path segment
    ├── RefusedError                      DingTalk understood and refused: repeating changes nothing
    │   ├── ConferenceClosedError         the meeting has ended
    │   ├── ConferenceNotRunningError     no meeting, or several, run under a room code or schedule
    │   ├── ConferenceNotFoundError       DingTalk knows no such meeting
    │   ├── ParameterError                DingTalk does not accept a parameter
    │   ├── PermissionDeniedError         the app may not make the call, or not for this meeting
    │   ├── QuotaExhaustedError           the organisation's monthly quota of calls is used up
    │   ├── CredentialsError              DingTalk gives no access token for the credentials
    │   └── AccessTokenError              DingTalk rejects the access token, and a fresh one too
    ├── TransientError                    the same call may succeed later
    │   ├── ServerError                   the fault is on DingTalk's side
    │   ├── ResponseError                 the response is not what DingTalk documents
    │   ├── ThrottledError                DingTalk takes no more calls for now
    │   │   └── AddressBannedError        DingTalk refuses everything from this public address
    │   └── TransportError                there was no complete response
    │       ├── ConnectionLostError       DingTalk could not be reached, or hung up
    │       └── CallTimeoutError          DingTalk did not connect or respond in time
    ├── CertificateError                  the server's TLS certificate is not that of the host
    ├── RedirectError                     the response is a redirect, which is never followed
    └── ConferencesError                  the call for some of many meetings failed

The class of an error decides how the provider handles it.
:mod:`~airflow_provider_dingconf.dingtalk.error_codes` has the class, the meaning and the remedy of each code.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_dingconf.dingtalk.error_codes import ErrorCode


class Outcome(str, Enum):
    """How a task ends whose call failed with a :class:`DingTalkError`."""

    FAIL = "fail"  # the task fails, and Airflow does not retry it
    SKIP = "skip"  # the task is skipped
    RETRY = "retry"  # the task fails, and Airflow's own retries apply
    SUCCEED = "succeed"  # the task succeeds, although the call did not


class Scope(str, Enum):
    """Whom an error concerns: whose other calls would fail with the same error."""

    MEETING = "meeting"  # only this call: a call for another meeting may succeed
    APP = "app"  # every call with this app, or with this connection
    ORGANISATION = "organisation"  # every call of every app of the organisation
    ADDRESS = "address"  # every call from this public address


class DingTalkError(Exception):
    """Raised when a call to DingTalk failed.

    :param message: what happened; DingTalk's own message, if there is one.
    :param code: DingTalk's error code, or one of this package's own; None if there is none.
    :param http_status: the HTTP status of the response; None if there was no response.
    :param request_id: the id that DingTalk's support asks for; None if DingTalk gave none.
    :param retry_after: seconds to wait before the call can succeed; None if not known.
    :param remedy: what to do, in place of the advice of the code or the class.
    """

    outcome: Outcome = Outcome.FAIL
    scope: Scope = Scope.MEETING
    repeat: bool = False  # whether the call is repeated, within the limits of one call
    support: ClassVar[bool] = False  # whether DingTalk's support can help with an error that lasts
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
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.http_status = http_status
        self.request_id = request_id
        self.retry_after = retry_after
        self.attempts = 0  # of the call, up to this error
        self.uncertain = False  # whether the call may have taken effect: it was sent, and not refused
        if remedy is not None:
            self.remedy = remedy
        if row := self._row:
            self.scope = row.scope

    def as_dict(self) -> dict[str, object]:
        """Return the error as plain values, for an XCom or a trigger's event."""
        names = ("message", "code", "http_status", "request_id", "retry_after", "uncertain")
        special = {"remedy": self.remedy} if "remedy" in vars(self) else {}
        return {"type": type(self).__name__, **{name: getattr(self, name) for name in names}, **special}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DingTalkError:
        """Return the error that :meth:`as_dict` turned into values."""
        facts = {name: value for name, value in values.items() if name not in ("type", "uncertain")}
        error = error_classes()[values["type"]](**facts)
        error.uncertain = values["uncertain"]
        return error

    @property
    def _row(self) -> ErrorCode | None:
        """The row of the code in the table, unless the code means something else for this call."""
        from airflow_provider_dingconf.dingtalk.error_codes import find_code

        row = find_code(self.code)
        return row if row and (not row.sent_by_dingtalk or isinstance(self, row.error)) else None

    def must_not_be_repeated(self) -> None:
        """Make the error say that the call may have taken effect, and keep Airflow from retrying the task."""
        self.outcome = Outcome.FAIL
        self.remedy = (
            "The call may have taken effect although its response was lost. Check that first: if it is "
            "repeated, it may take effect twice."
        )

    @property
    def concerns_all(self) -> bool:
        """Whether a call for any other meeting would fail with the same error."""
        return self.scope is not Scope.MEETING

    def outcome_with(self, on_error: Mapping[str, Outcome]) -> Outcome:
        """Return the outcome for a task: the default, unless ``on_error`` overrides it.

        :param on_error: outcomes by code or by the name of a class. The code takes precedence over the class,
            and the class over its base classes.
        """
        names = [self.code or "", *(kind.__name__ for kind in type(self).__mro__)]
        return next((on_error[name] for name in names if name in on_error), self.outcome)

    @property
    def summary(self) -> str:
        """What happened, with the HTTP status, the request id and the wait, in one line."""
        status = f"HTTP {self.http_status}" if self.http_status else None
        request_id = f"request id {self.request_id}" if self.request_id else None
        wait = f"retry after {self.retry_after:g} s" if self.retry_after is not None else None
        known = ", ".join(filter(None, (status, request_id, wait)))
        said = self.message if self.code in {None, self.message} else f"{self.code}: {self.message}"
        return f"{said} ({known})" if known else said

    def __str__(self) -> str:
        """Say what happened, what it means, and what to do next."""
        about = self._row or self
        end = "" if self.summary.endswith("?") else "."
        parts = [self.summary + end, about.meaning, vars(self).get("remedy") or about.remedy]
        if self.support and self.request_id:
            parts.append("If it lasts, give the request id to DingTalk's support.")
        return " ".join(part for part in parts if part)


class InvalidInputError(DingTalkError, ValueError):
    """Raised when the input is invalid: nothing was sent."""

    meaning = "Nothing was sent to DingTalk."
    remedy = ""


class InvalidConnectionError(InvalidInputError):
    """Raised when a field of the Airflow connection is missing, contradictory or unknown."""

    scope = Scope.APP


class InvalidConferenceIdError(InvalidInputError):
    """Raised when a conference id, a room code or a schedule's id is not one path segment."""


class RefusedError(DingTalkError):
    """Raised when DingTalk refuses a call, and would refuse it again."""


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
    """Raised when the app is not allowed to make the call, or not for this meeting."""

    meaning = "DingTalk did not allow the call."
    remedy = (
        "The cause may be a missing permission, which an administrator grants, or a rate limit: make fewer "
        "calls."
    )


class QuotaExhaustedError(RefusedError):
    """Raised when the organisation has used up its monthly quota: every call of every app fails."""

    scope = Scope.ORGANISATION


class CredentialsError(RefusedError):
    """Raised when DingTalk gives no access token for the credentials of the connection."""

    scope = Scope.APP
    meaning = "DingTalk gave no access token for the credentials of the connection."
    remedy = "Check Client ID (login) and Organisation (corpId) in the connection first, then Client Secret."


class AccessTokenError(RefusedError):
    """Raised when DingTalk rejects the access token: the connection's own, or a fresh one as well."""

    scope = Scope.APP
    meaning = "The access token is missing, expired, revoked or not known."
    remedy = "Check that the connection's app belongs to its host; a static access token has to be replaced."


class TransientError(DingTalkError):
    """Raised when the same call may succeed later: the hook repeats it, and then Airflow retries the task."""

    outcome = Outcome.RETRY
    repeat = True
    meaning = ""
    remedy = "The call may succeed later; the task's retries repeat it."


class ServerError(TransientError):
    """Raised when the fault is on DingTalk's side (HTTP 5xx)."""

    support = True
    meaning = "The fault is on DingTalk's side."


class ResponseError(TransientError):
    """Raised when a response is not what DingTalk documents: no JSON, another shape, no ``success``."""

    support = True


class ThrottledError(TransientError):
    """Raised when DingTalk takes no more calls for now."""

    scope = Scope.APP
    meaning = "DingTalk is called too often."
    remedy = (
        "Wait, then make fewer calls at a time: calls_per_second in the connection, Airflow's pools and "
        "max_active_tis_per_dag limit them."
    )


class AddressBannedError(ThrottledError):
    """Raised when DingTalk refuses all calls from this public address for some minutes."""

    repeat = False
    scope = Scope.ADDRESS


class TransportError(TransientError):
    """Raised when there was no complete response."""


class ConnectionLostError(TransportError):
    """Raised when DingTalk could not be reached, or hung up before the response was complete."""


class CallTimeoutError(TransportError):
    """Raised when DingTalk did not connect or respond in time."""


class CertificateError(DingTalkError):
    """Raised when the server's TLS certificate is not valid for the host: nothing was sent."""

    scope = Scope.APP


class RedirectError(DingTalkError):
    """Raised when the response is a redirect. It is never followed: its target would get the access token."""

    scope = Scope.APP


class ConferencesError(DingTalkError):
    """Raised when some of many meetings could not be locked or unlocked."""

    meaning = ""
    remedy = "The task's log says which meetings, and why."

    @classmethod
    def of(cls, action: str, errors: Mapping[str, DingTalkError], total: int) -> ConferencesError:
        """Return the error of a lock or unlock of ``total`` meetings; ``errors`` holds those that failed."""
        first_id, first = next(iter(errors.items()))
        rest = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        failed = f"{action} failed for {len(errors)} of {total} meetings"
        return cls(f"{failed}: {first_id}: {first.summary}{rest}")


def error_classes(kind: type[DingTalkError] = DingTalkError) -> dict[str, type[DingTalkError]]:
    """Return an error class and all its subclasses, by name."""
    found = {kind.__name__: kind}
    for each in kind.__subclasses__():
        found |= error_classes(each)
    return found

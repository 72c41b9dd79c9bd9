"""The table of error codes: the class of each code, whom it concerns, what it means and what to do.

:data:`ERRORS` has a row for each code, on one line. Codes are compared exactly. An unknown code can belong to
a family of codes with one prefix (:func:`find_code`); otherwise the HTTP status decides (:func:`error_class`).

Source: `Lock a meeting <https://help.dingtalk.io/open/development/api-lockconference>`__,
`Global error codes <https://help.dingtalk.io/open/development/server-api-error-codes-1>`__ and `Throttling
<https://help.dingtalk.io/open/development/how-to-process-api-throttling-on-the-dingtalk-server>`__.
"""

from __future__ import annotations

from typing import NamedTuple

from airflow_provider_dingconf.dingtalk import errors as e
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome, Scope


class ErrorCode(NamedTuple):
    """One row of the table: a code, and all that this package knows about it."""

    code: str
    http_status: tuple[int, ...]
    """The documented statuses; empty if there is none, or if the code also comes with status 200."""
    error: type[DingTalkError]
    scope: Scope
    wait: float | None
    """Seconds until the call can succeed, unless DingTalk names a time; None for growing waits."""
    meaning: str
    remedy: str

    @property
    def outcome(self) -> Outcome:
        """The default outcome of a task."""
        return self.error.outcome

    @property
    def sent_by_dingtalk(self) -> bool:
        """Whether DingTalk sends the code; otherwise it is this package's own."""
        return self not in _OWN


# fmt: off
_MEETING, _APP, _ORGANISATION, _ADDRESS = Scope
_FORBIDDEN = "Forbidden.AccessDenied."

# Meanings and remedies that several codes share.
_FAULT = e.ServerError.meaning
_PARAMETER = "A parameter is wrong."
_SECRET = "Client ID and Client Secret do not belong together."  # noqa: S105  # nosec B105
_PER_SECOND = "DingTalk allows fewer calls per second."
_PER_MINUTE = "DingTalk allows fewer calls per minute."
_BUSY = "DingTalk is busy, or called too often."
_LATER = e.TransientError.remedy
_CHECK_ID = "Check conference_id: it takes the meeting's conferenceId; a room code goes into room_code, a schedule's id into schedule_conference_id."
_CHECK_MEETING = "Check what names the meeting: conference_id, room_code or schedule_conference_id."
_CHECK_SECRET = "Compare the connection's Client ID (login) and Client Secret (password) with the app's own."  # noqa: S105  # nosec B105
_CHECK_TOKEN = "Check that the connection's app and host belong together; a static access token has to be replaced by a new one in Access token."  # noqa: S105  # nosec B105
_CHECK_PATH = "Check the path, which begins with a version such as /v1.0, and the connection's host."
_GRANT = "An administrator grants the app VideoConference.Conference.Write (VideoConference.Conference.Read for reading calls)."
_ADD_ADDRESS = "Ask an administrator to add the public address of this host to the app's server egress addresses."
_SLOW_DOWN = e.ThrottledError.remedy
_QUOTA = "The organisation has used up its monthly quota of API calls."
_PLAN = "Calls succeed again when the month ends or the organisation has a larger plan. DingTalk's developer console shows what used the quota."
_PROXY = "Check that the connection's host is DingTalk's, and which proxies are in between."

_SENT = (
    # The lock call's five.
    ErrorCode("paramsError", (400,), e.ParameterError, _MEETING, None, _PARAMETER, _CHECK_ID),
    ErrorCode("confClosed", (400,), e.ConferenceClosedError, _MEETING, None, "The meeting has ended.", "There is nothing left to lock or unlock."),
    ErrorCode("noPermission", (400, 403), e.PermissionDeniedError, _MEETING, None, "The app may not act on this meeting.", "Check that the meeting belongs to the organisation of the connection, and the app's permissions."),
    ErrorCode("commandError", (400,), e.ParameterError, _MEETING, None, "DingTalk does not accept the command for this meeting.", "Check that the meeting is running and of a kind that can be locked."),
    ErrorCode("systemError", (500,), e.ServerError, _MEETING, None, _FAULT, _LATER),
    # The calls that read meetings.
    ErrorCode("roomNotFound", (404,), e.ConferenceNotFoundError, _MEETING, None, "DingTalk knows no such meeting.", _CHECK_ID),
    ErrorCode("invalidRoomCode", (400,), e.ParameterError, _MEETING, None, "DingTalk does not accept the room code.", "Check room_code: a person sees it in the meeting's window; a conferenceId goes into conference_id."),
    ErrorCode("invalidScheduleConferenceId", (400,), e.ParameterError, _MEETING, None, "DingTalk does not accept the schedule's id.", "Check schedule_conference_id: it takes a scheduled meeting's scheduleConferenceId; a conferenceId goes into conference_id."),
    *(ErrorCode(code, (400,), e.ParameterError, _MEETING, None, _PARAMETER, _CHECK_MEETING) for code in ("missingRoomId", "missingRoomCode", "paramError", "unknownUserError")),
    ErrorCode("resourceClose", (400,), e.ConferenceClosedError, _MEETING, None, "The meeting has ended.", "There is nothing left to do."),
    # The call that creates a meeting.
    ErrorCode("paramsTitleError", (400,), e.ParameterError, _MEETING, None, "DingTalk does not accept the title.", "Give a title of 1 to 256 characters."),
    ErrorCode("waterLimitError", (404,), e.RefusedError, _MEETING, None, "DingTalk's limit on creating meetings is reached.", "Close meetings that are still open, or ask an administrator of the organisation."),
    ErrorCode("permissionError", (404,), e.PermissionDeniedError, _MEETING, None, "The app may not create a meeting of this creator.", "Check creator_id, and that the app has VideoConference.Conference.Write."),
    # Access tokens.
    ErrorCode("InvalidAuthentication", (400, 401), e.AccessTokenError, _APP, None, "The access token is expired, revoked or not known.", _CHECK_TOKEN),
    ErrorCode("AuthenticationFailed.MissingParameter", (400,), e.AccessTokenError, _APP, None, "No access token reached DingTalk.", "Check whether a proxy removes the header x-acs-dingtalk-access-token, and the connection's Access token."),
    ErrorCode("40014", (), e.AccessTokenError, _APP, None, "The access token is not valid (an old-style code).", _CHECK_TOKEN),
    ErrorCode("invalidClientIdOrSecret", (400,), e.CredentialsError, _APP, None, _SECRET, _CHECK_SECRET),
    ErrorCode("invalidSuiteKey", (400,), e.CredentialsError, _APP, None, "The Client ID (SuiteKey) is not that of a third-party app.", "Check the Client ID (login) of the connection; for an internal app remove the suite ticket."),
    ErrorCode("invalidSuiteTicket", (400,), e.CredentialsError, _APP, None, "The suite ticket is invalid or has expired.", "Put DingTalk's newest one into Suite ticket, or leave it empty for the unified token call."),
    ErrorCode("invalidAuthInfo", (400,), e.CredentialsError, _APP, None, "The organisation has not authorised the third-party app.", "Check Organisation (corpId), and that the organisation has the app installed."),
    ErrorCode("invalid.client", (400,), e.CredentialsError, _APP, None, _SECRET, _CHECK_SECRET),
    ErrorCode("authFailed", (401,), e.CredentialsError, _APP, None, _SECRET, _CHECK_SECRET),
    ErrorCode("unsupported.grant.type", (400,), e.CredentialsError, _APP, None, "DingTalk does not give this app a token by the unified token call.", "Leave Organisation (corpId) empty for an internal app; a third-party app needs a Suite ticket."),
    ErrorCode("unauthorized.client", (401,), e.CredentialsError, _APP, None, "The app may not act for this organisation.", "Check Organisation (corpId), and that the organisation has authorised the app."),
    # Permission, and the month's quota.
    ErrorCode(_FORBIDDEN + "AccessTokenPermissionDenied", (403,), e.PermissionDeniedError, _APP, None, "The app lacks the permission for this call.", _GRANT),
    ErrorCode("60011", (), e.PermissionDeniedError, _APP, None, "The app lacks the permission for this call (an old-style code).", _GRANT),
    ErrorCode(_FORBIDDEN + "IpNotInWhiteList", (403,), e.PermissionDeniedError, _APP, None, "The public address of this host is not on the app's list.", _ADD_ADDRESS),
    ErrorCode("60020", (), e.PermissionDeniedError, _APP, None, "The public address of this host is not on the app's list (an old-style code).", _ADD_ADDRESS),
    ErrorCode("orgAccessForbidden", (400, 403), e.PermissionDeniedError, _ORGANISATION, None, "The app may not act for this organisation.", "Ask an administrator of the organisation to allow it."),
    ErrorCode(_FORBIDDEN + "ApiCountLimitForOrg", (403,), e.QuotaExhaustedError, _ORGANISATION, None, _QUOTA, _PLAN),
    ErrorCode("90020", (), e.QuotaExhaustedError, _ORGANISATION, None, _QUOTA, _PLAN),
    # Calls that DingTalk does not have.
    ErrorCode("InvalidAction.NotFound", (404,), e.RefusedError, _APP, None, "DingTalk has no call with this path and method.", _CHECK_PATH),
    ErrorCode("404", (), e.RefusedError, _APP, None, "DingTalk has no call with this path (an old-style code).", _CHECK_PATH),
    # Rate limits.
    *(ErrorCode(_FORBIDDEN + suffix, (403,), e.ThrottledError, _APP, 1.0, _PER_SECOND, _SLOW_DOWN) for suffix in ("QpsLimitForApi", "QpsLimitForAppkeyAndApi", "QpsLimitForSuitekeyAndOrgAndApi")),
    *(ErrorCode(_FORBIDDEN + suffix, (403,), e.ThrottledError, _APP, 60.0, _PER_MINUTE, _SLOW_DOWN) for suffix in ("QpmLimitForAppkeyAndApi", "QpmLimitForSuitekeyAndOrgAndApi")),
    ErrorCode("qps.exceed.limit", (400,), e.ThrottledError, _APP, 1.0, _PER_SECOND, _SLOW_DOWN),
    ErrorCode("oaplus.query.limit", (400,), e.ThrottledError, _APP, None, _BUSY, _SLOW_DOWN),
    ErrorCode("system.busy", (429, 500, 503), e.ThrottledError, _APP, None, _BUSY, _SLOW_DOWN),
    ErrorCode("systemBusy", (429,), e.ThrottledError, _APP, None, _BUSY, _SLOW_DOWN),
    *(ErrorCode(str(number), (), e.ThrottledError, _APP, None, "DingTalk is called too often (an old-style code).", _SLOW_DOWN) for number in range(90002, 90020)),
    # DingTalk's side.
    *(ErrorCode(code, (500, 503), e.ServerError, _MEETING, None, _FAULT, _LATER) for code in ("serviceBusy", "internalError")),
    *(ErrorCode(code, (500,), e.ServerError, _MEETING, None, _FAULT, _LATER) for code in ("server.error", "unknownError")),
    ErrorCode("-1", (), e.ServerError, _MEETING, None, "DingTalk is busy (an old-style code).", _LATER),
)
_OWN = (
    ErrorCode("confNotRunning", (), e.ConferenceNotRunningError, _MEETING, None, "A room code or a schedule can stand for several meetings; the provider takes the one that is running.", "Wait for it with ConferenceSensor, or name one meeting by its conference_id."),
    ErrorCode("addressBanned", (), e.AddressBannedError, _ADDRESS, 300.0, "DingTalk refuses every call from this public address for some minutes.", "Make no calls until the ban ends. All apps behind the address share its limit of 10,000 calls in 20 s."),
    ErrorCode("unreadableAnswer", (), e.ResponseError, _MEETING, None, "The response is not the JSON that DingTalk documents.", _PROXY),
    ErrorCode("notConfirmed", (200,), e.ResponseError, _MEETING, None, "DingTalk did not confirm that it did what was asked.", _LATER),
    ErrorCode("connectionLost", (), e.ConnectionLostError, _MEETING, None, "DingTalk could not be reached, or hung up.", "Check the host of the connection, name resolution, proxies and firewalls."),
    ErrorCode("timeout", (), e.CallTimeoutError, _MEETING, None, "DingTalk did not respond in time.", "Check the network; timeout in the connection's extra gives a call more time."),
    ErrorCode("badCertificate", (), e.CertificateError, _APP, None, "The server could not prove that it is the host of the connection.", "Check the host; if a proxy re-signs traffic, name its certificate authority in verify."),
    ErrorCode("redirect", (301, 302, 303, 307, 308), e.RedirectError, _APP, None, "The host responds with a redirect, which is never followed.", "Put DingTalk's own host into the connection."),
)
# fmt: on

ERRORS: dict[str, ErrorCode] = {row.code: row for row in (*_SENT, *_OWN)}
"""The table of error codes, by code."""

_FAMILIES = {
    _FORBIDDEN + "Qps": ERRORS[_FORBIDDEN + "QpsLimitForApi"],
    _FORBIDDEN + "Qpm": ERRORS[_FORBIDDEN + "QpmLimitForAppkeyAndApi"],
    _FORBIDDEN + "ApiCountLimit": ERRORS[_FORBIDDEN + "ApiCountLimitForOrg"],
}


def find_code(code: str | None) -> ErrorCode | None:
    """Return the row of a code, or of the family with its prefix; None for any other code."""
    if code is None or code in ERRORS:
        return ERRORS.get(code or "")
    return next((row for prefix, row in _FAMILIES.items() if code.startswith(prefix)), None)


def error_class(code: str | None, http_status: int) -> type[DingTalkError]:
    """Return the exception class for a refusal: by its code, else by its HTTP status.

    An unknown code with status 200 is a refusal: DingTalk's old-style errors have that status.
    """
    if row := find_code(code):
        return row.error
    by_status = {401: e.AccessTokenError, 403: e.PermissionDeniedError, 429: e.ThrottledError}
    return by_status.get(http_status, e.ServerError if http_status >= 500 else e.RefusedError)

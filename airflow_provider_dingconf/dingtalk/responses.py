"""``read_response``: the content of a successful response, or the :class:`DingTalkError` that it stands for.

All decisions on what an HTTP response means are in this module.
"""

from __future__ import annotations

import json
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk import errors as e
from airflow_provider_dingconf.dingtalk.error_codes import error_class, find_code
from airflow_provider_dingconf.dingtalk.limits import is_number
from airflow_provider_dingconf.dingtalk.records import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_dingconf.dingtalk.calls import Call, Response
    from airflow_provider_dingconf.dingtalk.endpoints import Endpoint

MAX_RESPONSE_BYTES = 1024 * 1024  # a longer response is refused: DingTalk's have a few hundred bytes
MASK = "***"

_UNREADABLE = "unreadableAnswer"
_MAX_SHOWN = 300
_MAX_BAN_MINUTES = 24 * 60  # DingTalk's ban lasts 5
_MAX_LIMIT_SECONDS = 3600.0  # its rate limits are for seconds and minutes; a longer wait is a wrong clock
_GZIP_OR_ZLIB = 47  # zlib's wbits for "whichever of the two it is"
_NOT_JSON = object()
_HTML = re.compile(r"\s*<(!doctype\s+html|!--|html|head|body)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]{0,100}>([^<]+)", re.IGNORECASE)
_TAGS = re.compile(r"<(script|style)\b.*?</\1[^>]*>|<[^>]*>?", re.IGNORECASE | re.DOTALL)
# The marks of pages of Alibaba's firewall. Any proxy's pages can contain "punish" and "deny": they count only
# as a name that the firewall uses, or in an address of its pages.
_BAN_MARKS = re.compile(
    r"""x5secdata|_____tmd_____|\bbaxia|/punish[/?:"'.-]|["']punish["']|\bpunish=|alicdn\.com/\S{0,99}\bdeny\b""",
    re.IGNORECASE,
)
# The headers or the text of a page that a proxy or another web server sends.
_ANOTHER_SERVER = re.compile(
    r"proxy|squid|zscaler|forti(gate|guard|net)|blue ?coat|sophos|mcafee|umbrella|nginx|apache|cloudflare",
    re.IGNORECASE,
)
_LIMIT_ENDS = re.compile(r"将在\s*(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\s*结束")  # in China time
_SUB_CODE = re.compile(r"\[subcode=(\w+)")
_SCOPES = re.compile(r"requiredScopes=\[([\w., -]+)\]")
_FINE = frozenset({None, "0", "200", "OK"})

# DingTalk's names of a field, in new and old-style responses.
_CODE = ("code", "Code", "errcode")
_MESSAGE = ("message", "Message", "errmsg")
_REQUEST_ID = ("requestid", "requestId", "RequestId", "request_id", "uuid")


@dataclass
class CallResult:
    """The result of a successful call."""

    content: Any = field(repr=False)  # the JSON of the response, or what the call's "read" made of it
    request_id: str | None  # the id that DingTalk's support asks for; None if DingTalk gave none
    attempts: int = 1  # how many the call took


def read_response(call: Call, response: Response, now: float, secrets: Iterable[str] = ()) -> CallResult:
    """Return the content of a successful response.

    :param now: seconds since the epoch, for a wait that ends at a given time.
    :param secrets: to be masked in the text of an error, since a server may echo the request.
    """
    endpoint, status = call.endpoint, response.status
    errors = _Errors(endpoint, response, status, now, tuple(secrets))
    if 300 <= status < 400:
        target = response.headers.get("location", "an unnamed place")
        raise errors.make(f"the response redirects to {target}, which is not followed", "redirect")
    text = _text_in(response)
    if text is None:
        raise errors.make(f"the response is longer than {MAX_RESPONSE_BYTES} bytes", _UNREADABLE)
    try:
        content = json.loads(text.strip() or "null")
    except (ValueError, RecursionError):
        content = _NOT_JSON
    if not isinstance(content, dict):
        if endpoint.any_body and status < 300 and content is not _NOT_JSON:
            return CallResult(content, errors.request_id())
        raise errors.for_page(text) if _HTML.match(text) else errors.for_other_body(text)
    errors.content = content
    if "punish" in content or (content.get("status") == 1111 and "wait" in content):
        raise errors.make("this public address is banned", "addressBanned", wait=_ban(content.get("wait")))
    code = text_of(content, *_CODE)
    if code == "88":  # an old-style code: the sub_code, or else the message, says what was refused
        in_message = _SUB_CODE.search(text_of(content, *_MESSAGE) or "")
        code = text_of(content, "sub_code") or (in_message[1] if in_message else code)
    if status >= 300 or (code not in _FINE and ("errcode" in content or find_code(code))):
        raise errors.for_refusal(text_of(content, *_MESSAGE), code)
    success = content.get("success", "missing")
    if success is False or (endpoint.confirms and success is not True):
        raise errors.for_unconfirmed(success, code)
    try:
        return CallResult(call.read(content) if call.read else content, errors.request_id())
    except e.ResponseError as error:
        raise errors.make(error.message, _UNREADABLE) from None


@dataclass
class _Errors:
    """Makes the error that a response stands for."""

    endpoint: Endpoint
    response: Response
    status: int
    now: float
    secrets: tuple[str, ...]
    content: Mapping[str, Any] = field(default_factory=dict)  # until it is read

    def for_unconfirmed(self, success: object, code: str | None) -> e.DingTalkError:
        shown = str(success).lower() if isinstance(success, (bool, str)) else type(success).__name__
        reasons = filter(None, (None if code in _FINE else code, text_of(self.content, *_MESSAGE)))
        return self.make(": ".join((f"success is {shown} in the response", *reasons)), "notConfirmed")

    def for_page(self, text: str) -> e.DingTalkError:
        """Return the error for an HTML page: an address ban, or another server's page."""
        text = masked(text, self.secrets)
        title = _TITLE.search(text)
        shown = one_line(title[1] if title else _TAGS.sub(" ", text[:5_000])) or "without text"
        server = " ".join(self.response.headers.get(name, "") for name in ("server", "via"))
        if _BAN_MARKS.search(text) or (self.status == 403 and not _ANOTHER_SERVER.search(f"{server} {text}")):
            return self.make(f"an HTML page came, as in an address ban: {shown}", "addressBanned")
        said = f"an HTML page came, not JSON: {shown}"
        if self.status >= 500 or self.status == 429:
            return self.for_refusal(said, None)
        if self.status < 300:
            error = self.make(said, _UNREADABLE)
            error.repeat = False  # the same page would come again
            return error
        asks_for_token = self.status == 401 and not self.endpoint.with_credentials
        error = self.make(said, _UNREADABLE, kind=e.AccessTokenError if asks_for_token else e.RefusedError)
        error.scope = e.Scope.APP  # any other call would meet the same page
        return error

    def for_other_body(self, text: str) -> e.DingTalkError:
        # The whole text: a shortened one could end in half a secret, which would not be masked.
        said = f"the response is not a JSON object: {text}" if text.strip() else "the response is empty"
        return self.make(said, _UNREADABLE) if self.status < 300 else self.for_refusal(said, None)

    def for_refusal(self, said: str | None, code: str | None) -> e.DingTalkError:
        kind = error_class(code, self.status)
        refused = kind is e.AccessTokenError or (kind is e.RefusedError and not find_code(code))
        if self.endpoint.with_credentials:
            # DingTalk refuses an unknown Client ID or corpId with unknownError.
            kind = e.CredentialsError if refused or code == "unknownError" else kind
        elif self.status == 401:
            kind = e.AccessTokenError
        said = said or "DingTalk gave no reason"
        wait = parse_retry_after(self.response.headers.get("retry-after"), self.now)
        if wait is None and issubclass(kind, e.ThrottledError):
            wait = _until_limit_ends(said, self.now)
        return self.make(said, code, kind=kind, wait=wait)

    def make(
        self,
        said: str,
        code: str | None,
        kind: type[e.DingTalkError] | None = None,
        wait: float | None = None,
    ) -> e.DingTalkError:
        """Return an error; by default, the kind and the wait are those of the code."""
        row = find_code(code)
        kind = kind or error_class(code, self.status)
        scopes = _required_scopes(self.content) if issubclass(kind, e.PermissionDeniedError) else ""
        return kind(
            self._clean(said),
            code=code and self._clean(code),
            http_status=self.status,
            request_id=self.request_id(),
            retry_after=row.wait if wait is None and row else wait,
            remedy=f"An administrator grants the app {self._clean(scopes)}." if scopes else None,
        )

    def request_id(self) -> str | None:
        found = text_of(self.content, *_REQUEST_ID) or self.response.headers.get("x-acs-request-id")
        return self._clean(found) if found else None

    def _clean(self, text: str) -> str:
        return one_line(masked(text, self.secrets))


def _text_in(response: Response) -> str | None:
    """Return the body as text, decompressed if a proxy compressed it; None if it is too long."""
    body = response.content
    if response.headers.get("content-encoding", "identity").lower() in {"gzip", "x-gzip", "deflate"}:
        with suppress(zlib.error):  # it may not be compressed after all
            body = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, MAX_RESPONSE_BYTES + 1)
    return body.decode("utf-8", "replace").removeprefix("\ufeff") if len(body) <= MAX_RESPONSE_BYTES else None


def _ban(minutes: object) -> float | None:
    return float(minutes) * 60 if is_number(minutes) and 0 < minutes <= _MAX_BAN_MINUTES else None


def _required_scopes(content: Mapping[str, Any]) -> str:
    detail = content.get("AccessDeniedDetail") or content.get("accessdenieddetail")
    scopes = detail.get("requiredScopes") if isinstance(detail, dict) else None
    if not isinstance(scopes, list):  # an old-style refusal names them in its message
        scopes = _SCOPES.findall(text_of(content, *_MESSAGE) or "")
    return ", ".join(one for one in scopes if isinstance(one, str))


def _until_limit_ends(message: str, now: float) -> float | None:
    ends = _LIMIT_ENDS.search(message)
    try:
        moment = datetime.fromisoformat(f"{ends[1]}+08:00") if ends else None
    except ValueError:
        return None
    return min(max(0.0, moment.timestamp() - now), _MAX_LIMIT_SECONDS) if moment else None


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return the text with every secret in it masked."""
    for secret in sorted(secrets, key=len, reverse=True):  # one secret can be the beginning of another
        text = text.replace(secret, MASK).replace(json.dumps(secret)[1:-1], MASK)
    return text


def one_line(text: str) -> str:
    """Return text from outside as one short, printable line for a message."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…"


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for; None if it says nothing usable.

    :param value: a number of seconds, or an HTTP date (RFC 9110, 10.2.3), which is in GMT.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None

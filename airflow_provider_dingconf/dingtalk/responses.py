"""What an answer means: the content of a good one, or the :class:`DingTalkError` that it stands for.

Everything that can come back over HTTP is decided here, once, for the sync path and the async path.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.calls import text_of
from airflow_provider_dingconf.dingtalk.errors import (
    ERRORS,
    AccessTokenError,
    AnswerError,
    CredentialsError,
    DingTalkError,
    RefusedError,
    error_class,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_dingconf.dingtalk.calls import Call, Response

MAX_ANSWER_BYTES = 1024 * 1024
"""An answer over this size is refused: DingTalk's are a few hundred bytes."""

MASK = "***"

_MAX_SHOWN = 300
_MOST_MINUTES = 24 * 60  # of a ban; DingTalk's lasts 5
_GZIP_OR_ZLIB = 47  # zlib's wbits for "whichever of the two it is"
_NOT_A_BAN = frozenset({401, 404, 407})  # pages of a server that is not DingTalk's, or of a proxy
_HTML = re.compile(rb"\s*<(!doctype\s+html|!--|html|head|body)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]{0,100}>([^<]+)", re.IGNORECASE)
# What Alibaba's firewall puts into its pages of refusal.
_BAN_MARKS = re.compile(rb"punish|x5secdata|x5referer|_____tmd_____|\b1111\b", re.IGNORECASE)
_FINE = frozenset({None, "0", "200", "OK"})
_MESSAGE = ("message", "Message", "errmsg")


@dataclass(frozen=True)
class Good:
    """What a good answer holds.

    :param content: its JSON object, or what the call's ``read`` makes of it.
    :param request_id: what DingTalk's support asks for; None where DingTalk gave none.
    """

    content: Any = field(repr=False)
    request_id: str | None


def read_answer(call: Call, answer: Response, now: float, secrets: Iterable[str] = ()) -> Good:
    """Return what a good answer holds.

    :param call: the call that was answered.
    :param answer: what came back.
    :param now: seconds since the epoch, for a ``Retry-After`` that names a date.
    :param secrets: what is masked in the text of an error, since a server may echo what it was sent.
    :raises DingTalkError: the subclass that the answer stands for.
    """
    return _Reading(call, answer, now, tuple(secrets)).result()


@dataclass(frozen=True)
class _Reading:
    """One answer being read."""

    call: Call
    answer: Response
    now: float
    secrets: tuple[str, ...]

    def result(self) -> Good:
        status = self.answer.status
        if 300 <= status < 400:
            target = self.answer.headers.get("location", "an unnamed place")
            raise self._own("redirect", f"the answer redirects to {target}, which is not followed")
        body = _decompressed(self.answer)
        if body is None:
            raise self._own("unreadableAnswer", f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        content = _json_object(body)
        if content is None:
            raise self._of_no_json(body)
        if _is_ban(content):
            seconds = _minutes(content.get("wait"))
            raise self._own("addressBanned", "this public address is banned", content, seconds)
        code = text_of(content, "code", "Code", "errcode")
        if status >= 300 or (code not in _FINE and ("errcode" in content or code in ERRORS)):
            raise self._error(content, code)
        if self.call.confirms and content.get(self.call.confirms) is not True:
            said = content.get(self.call.confirms, "missing")
            shown = str(said).lower() if isinstance(said, (bool, str)) else type(said).__name__
            reasons = filter(None, (None if code in _FINE else code, text_of(content, *_MESSAGE)))
            told = ": ".join((f"{self.call.confirms} is {shown} in the answer", *reasons))
            raise self._own("notConfirmed", told, content)
        try:
            return Good(self.call.read(content), self._request_id(content))
        except AnswerError as error:
            raise self._own("unreadableAnswer", error.message, content) from None

    def _of_no_json(self, body: bytes) -> DingTalkError:
        """Tell the ban's page, whose HTTP status is not documented, from a gateway's or another server's."""
        status = self.answer.status
        html = _HTML.match(body)
        if html and (_BAN_MARKS.search(body) or not (status >= 500 or status in _NOT_A_BAN)):
            title = _TITLE.search(masked(body.decode("utf-8", "replace"), self.secrets))
            named = f" ({title[1].strip()})" if title else ""
            said = f"an HTML page{named} came in place of an answer, as in an address ban"
            return self._own("addressBanned", said)
        shown = body.decode("utf-8", "replace").strip()  # all of it: a cut could leave half a secret unmasked
        said = f"the answer is not a JSON object: {shown}" if shown else "the answer is empty"
        if status < 300:
            return self._own("unreadableAnswer", said)
        return self._error({"message": said}, None)

    def _error(self, content: Mapping[str, Any], code: str | None) -> DingTalkError:
        """Return the error that DingTalk's code or the HTTP status stands for."""
        row = ERRORS.get(code or "")
        kind = error_class(code, self.answer.status)
        if self.call.with_credentials and kind in {AccessTokenError, RefusedError}:
            kind = CredentialsError
        elif self.answer.status == 401 and not self.call.with_credentials:
            kind = AccessTokenError
        retry_after = parse_retry_after(self.answer.headers.get("retry-after"), self.now)
        if retry_after is None and row is not None:
            retry_after = row.wait
        said = text_of(content, *_MESSAGE) or (row.meaning if row else kind.meaning)
        return self._made(kind, said, code, content, retry_after)

    def _own(
        self, code: str, said: str, content: Mapping[str, Any] | None = None, retry_after: float | None = None
    ) -> DingTalkError:
        """Return the error of a condition that DingTalk has no code for."""
        row = ERRORS[code]
        return self._made(
            row.error, said, code, content or {}, row.wait if retry_after is None else retry_after
        )

    def _made(
        self,
        kind: type[DingTalkError],
        said: str,
        code: str | None,
        content: Mapping[str, Any],
        retry_after: float | None,
    ) -> DingTalkError:
        return kind(
            self._clean(said),
            code=code and self._clean(code),
            http_status=self.answer.status,
            request_id=self._request_id(content),
            retry_after=retry_after,
        )

    def _request_id(self, content: Mapping[str, Any]) -> str | None:
        found = text_of(content, "requestid", "requestId", "RequestId", "request_id", "uuid")
        found = found or self.answer.headers.get("x-acs-request-id")
        return self._clean(found) if found else None

    def _clean(self, text: str) -> str:
        return one_line(masked(text, self.secrets))


def _decompressed(answer: Response) -> bytes | None:
    """Return the body as it was before a proxy compressed it; None where it is too long.

    None is asked to compress (no ``Accept-Encoding``), but some do. A body that cannot be decompressed
    is left as it is, and so is no JSON.
    """
    body = answer.content
    if answer.headers.get("content-encoding", "identity").lower() in {"gzip", "x-gzip", "deflate"}:
        try:
            body = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, MAX_ANSWER_BYTES + 1)
        except zlib.error:
            return body
    return body if len(body) <= MAX_ANSWER_BYTES else None


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_ban(content: Mapping[str, Any]) -> bool:
    return "punish" in content or (content.get("status") == 1111 and "wait" in content)


def _minutes(wait: object) -> float | None:
    """Return the seconds in a number of minutes; None where it is no number to wait."""
    if isinstance(wait, (int, float)) and not isinstance(wait, bool) and 0 < wait <= _MOST_MINUTES:
        return float(wait) * 60
    return None


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return the text with every secret in it replaced."""
    for secret in sorted(secrets, key=len, reverse=True):  # one secret can be the beginning of another
        text = text.replace(secret, MASK).replace(json.dumps(secret)[1:-1], MASK)
    return text


def one_line(text: str) -> str:
    """Return a foreign text as it may stand in a message: one line, printable, and short."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…"


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for; None where it says nothing usable.

    :param value: a number of seconds, or an HTTP date (RFC 9110, 10.2.3).
    :param now: seconds since the epoch.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None

"""Links on a task: the documentation of the call it made and of the error it met, and the meeting it found.

The operator pushes both addresses as one XCom while the task runs: Airflow 2 asks for a link in the web
server, where the operator's own values are not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_dingconf.dingtalk.calls import ERROR_CODES_PAGE, documentation_url

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

    from airflow_provider_dingconf.dingtalk.errors import DingTalkError

LINKS_KEY = "dingtalk_links"


def links_for(base_url: str, page: str, error: DingTalkError | None) -> dict[str, str]:
    """Return what a task pushes: the addresses on the documentation site that goes with the host.

    :param base_url: the host that was called.
    :param page: the name of the call's page.
    :param error: what the call ended in; None where it went well.
    """
    links = {"documentation": documentation_url(page, base_url)}
    if error is not None:
        links["error"] = documentation_url(ERROR_CODES_PAGE, base_url)
    return links


class _PushedLink(BaseOperatorLink):
    """A link whose address the task has pushed."""

    pushed_as: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or an empty string while there is none."""
        from airflow.providers.common.compat.sdk import XCom

        links = XCom.get_value(ti_key=ti_key, key=LINKS_KEY) or {}
        return links.get(self.pushed_as) or ""


class CallDocumentationLink(_PushedLink):
    """The page of DingTalk's documentation on the call that the task made."""

    name = "DingTalk documentation"
    pushed_as = "documentation"


class JoinConferenceLink(_PushedLink):
    """The address to join the meeting that the task found by its room code or schedule."""

    name = "Join the meeting"
    pushed_as = "join"


class ErrorDocumentationLink(_PushedLink):
    """The page of DingTalk's documentation on error codes, when the task met a DingTalk error."""

    name = "DingTalk error codes"
    pushed_as = "error"

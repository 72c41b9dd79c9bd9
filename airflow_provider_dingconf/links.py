"""Links on a task: DingTalk's documentation of the call and of error codes, and the meeting to join.

Airflow 3 gets the links from the operator when the task has run, and stores them. Airflow 2 gets them in the
webserver, where the operator of the task does not exist: so the task pushes them as one XCom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.providers.common.compat.sdk import BaseOperatorLink
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.calls import ERROR_CODES_PAGE, documentation_url
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context, TaskInstanceKey

    from airflow_provider_dingconf.dingtalk.errors import DingTalkError

LINKS_KEY = "dingtalk_links"


def keep_links(
    task: BaseOperator,
    context: Context,
    base_url: str | None,
    page: str | None,
    error: DingTalkError | None = None,
    *,
    join_url: str | None = None,
) -> None:
    """Keep the addresses for the links of a task, on the documentation site that belongs to the host.

    :param base_url: the host of the connection; None if no call was made.
    :param page: the name of the call's page, if known.
    """
    if base_url is None or isinstance(error, InvalidInputError):
        return
    links = {"documentation": documentation_url(page, base_url)} if page else {}
    if error is not None:
        links["error"] = documentation_url(ERROR_CODES_PAGE, base_url)
    if join_url:
        links["join"] = join_url
    if AIRFLOW_V_3_0_PLUS:
        setattr(task, LINKS_KEY, links)
    elif links and "ti" in context:
        context["ti"].xcom_push(key=LINKS_KEY, value=links)


class _KeptLink(BaseOperatorLink):
    """A link whose address :func:`keep_links` has kept."""

    kept_as: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or an empty string while there is none."""
        if AIRFLOW_V_3_0_PLUS:
            links = getattr(operator, LINKS_KEY, {})
        else:
            from airflow.providers.common.compat.sdk import XCom

            links = XCom.get_value(ti_key=ti_key, key=LINKS_KEY) or {}
        return links.get(self.kept_as) or ""


class CallDocumentationLink(_KeptLink):
    """The page of DingTalk's documentation on the call that the task made."""

    name = "DingTalk documentation"
    kept_as = "documentation"


class JoinConferenceLink(_KeptLink):
    """The address to join the meeting that the task found by its room code or schedule."""

    name = "Join the meeting"
    kept_as = "join"


class ErrorDocumentationLink(_KeptLink):
    """The page of DingTalk's documentation on error codes, if the task met a DingTalk error."""

    name = "DingTalk error codes"
    kept_as = "error"


LINKS = (CallDocumentationLink(), ErrorDocumentationLink(), JoinConferenceLink())

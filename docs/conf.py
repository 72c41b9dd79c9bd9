"""How Sphinx builds the documentation: ``make docs``.

Pages are Markdown (MyST). The API reference comes from the docstrings, and the tables of error codes and of
the sandbox's meetings from the package: nothing that the code knows is written down twice.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

if "AIRFLOW_HOME" not in os.environ:  # importing Airflow creates it
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")

from airflow_provider_dingconf import __version__
from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.sandbox.faults import listing

project = "airflow-provider-dingconf"
author = "airflow-provider-dingconf authors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"{project} {release}"

myst_enable_extensions = ["deflist", "substitution"]
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80

# References to this package's own public names must resolve; those to Airflow and Python are not checked,
# since their inventories are on other hosts.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!airflow_provider_dingconf\.).*"),
    (r"py:.*", r"airflow_provider_dingconf\.(client|dingtalk\.(calls|conferences|events))\..*"),
    (r"py:meth", r".*\.a[a-z]+_conferences?"),
]


def _codes(*, sent_by_dingtalk: bool) -> str:
    """Return a table of the error codes that DingTalk sends, or of this package's own."""
    lines = ["| code | HTTP | exception, outcome | meaning, and what to do |", "|---|---|---|---|"]
    for row in ERRORS.values():
        if row.sent_by_dingtalk == sent_by_dingtalk:
            code = row.code.replace(".", ".\u200b")  # where a line may break
            wait = f" after {row.wait:g} s" if row.wait else ""
            outcome = f"`{row.error.__name__}`, {row.outcome.name}{wait}"
            status = ", ".join(map(str, row.http_status)) or "—"
            lines.append(f"| `{code}` | {status} | {outcome} | {row.meaning} {row.remedy} |")
    return "\n".join(lines)


def _meetings() -> str:
    """Return a table of the sandbox's reserved meetings."""
    rows = [f"| `{ids}` | {rehearses} |" for ids, rehearses in listing()]
    return "\n".join(["| conference id | the result of a call |", "|---|---|", *rows])


myst_substitutions = {
    "codes_of_dingtalk": _codes(sent_by_dingtalk=True),
    "codes_of_this_package": _codes(sent_by_dingtalk=False),
    "sandbox_meetings": _meetings(),
}


def setup(app: Any) -> None:
    """Show a parameter that need not be given without the sentinel that is its default."""
    app.connect("autodoc-process-signature", _without_sentinels)


def _without_sentinels(*arguments: Any) -> tuple[str | None, str | None]:
    signature, returns = arguments[-2:]
    return signature and signature.replace("<object object>", "..."), returns

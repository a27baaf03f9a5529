"""Executed notebooks as others see them: without traces of the machine, and as web pages that need no network."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from helpers.settings import ROOT

WIDGET = "application/vnd.jupyter.widget-view+json"


def clean(notebook):
    """A copy without what differs from run to run: timings, widgets, overwritten progress lines, absolute paths."""
    notebook = nbformat.from_dict(notebook)
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _without_paths(_last_states(output.text))
            for kind, content in list(output.get("data", {}).items()):
                if kind == WIDGET:
                    del output.data[kind]
                elif isinstance(content, str) and kind.startswith("text/"):
                    output.data[kind] = _without_paths(content)
    return notebook


def _joined(outputs) -> list:
    """Outputs with neighbouring pieces of one stream joined: a stream is stored in pieces of chance length."""
    joined = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def _last_states(text) -> str:
    """Text as a terminal shows it: what a carriage return overwrites is gone."""
    return re.sub(r"[^\n]*\r(?=[^\n])", "", text.replace("\r\n", "\n"))


def _without_paths(text) -> str:
    text = re.sub(r"[^\s'\"]*[/\\]ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    for folder in (Path(sys.prefix), ROOT, Path.home()):  # the environment may stand inside the repository
        text = text.replace(f"{folder}{os.sep}", "")
    return text


PAGE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
alt="{{ output | get_metadata('alt', 'image/png') | default('', true) | escape_html }}">
</div>
{%- endblock -%}
"""


class _Renderer(IPythonRenderer):
    """Formulas become MathML, which browsers show without any script; other lessons are linked as pages."""

    def _math(self, body, display):
        try:
            return convert(body, display=display)
        except Exception:  # the converter has no common base for its errors
            return f'<code class="formula">{self.escape_html(body)}</code>'

    def inline_math(self, body):
        return self._math(body, "inline")

    def block_math(self, body):
        return self._math(body, "block")

    def link(self, text, url, title=None):
        return super().link(text, re.sub(r"^([\w.-]+)\.ipynb(?=#|$)", r"\1.html", url), title)

    def latex_environment(self, name, body):
        return self._math(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def to_html(notebook, title) -> str:
    """The notebook as one web page that needs nothing else: no network, no script; figures with their alt text."""
    page = HTMLExporter(raw_template=PAGE, anchor_link_text=" ")

    def render(source):
        return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)

    page.register_filter("markdown2html", render)
    return page.from_notebook_node(notebook, {"metadata": {"name": title}})[0]

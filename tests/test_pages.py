"""Cleaned notebooks and web pages, checked on notebooks written by hand."""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import pages
from helpers.settings import ROOT

new = nbformat.v4


def stream(text, name="stdout"):
    return new.new_output("stream", name=name, text=text)


def cleaned(*outputs):
    """The outputs of the only cell after cleaning."""
    notebook = new.new_notebook(cells=[new.new_code_cell("1", outputs=list(outputs))])
    return pages.clean(notebook).cells[0].outputs


def page(*sources):
    return pages.to_html(new.new_notebook(cells=[new.new_markdown_cell(source) for source in sources]), "title")


def test_pieces_of_one_stream_are_joined_and_others_are_not():
    outputs = cleaned(stream("a"), stream("b\n"), stream("w", "stderr"), stream("c"))
    assert [(o.name, o.text) for o in outputs] == [("stdout", "ab\n"), ("stderr", "w"), ("stdout", "c")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("1\r2\r3", "3"), ("1\r2\n3", "2\n3"), ("a\n1\r2\rb\n", "a\nb\n"), ("a\r\nb", "a\nb"), ("a", "a")],
)
def test_overwritten_progress_is_dropped(text, shown):
    assert cleaned(stream(text))[0].text == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"saved {ROOT}/results/a.csv", "saved results/a.csv"),
        (f"{sys.prefix}/lib/x.py:3: Warning", "lib/x.py:3: Warning"),
        (f"{Path.home()}/mine", "mine"),
        (f"{Path('/')}tmp/ipykernel_12/345.py:3: UserWarning: careful", "<cell>:3: UserWarning: careful"),
        ("a/b and 1/2", "a/b and 1/2"),
    ],
)
def test_paths_of_this_machine_are_dropped(text, shown):
    assert cleaned(stream(text))[0].text == shown
    assert cleaned(new.new_output("display_data", data={"text/plain": text}))[0].data["text/plain"] == shown


def test_widgets_leave_their_text():
    output = new.new_output("display_data", data={pages.WIDGET: {"model_id": "a"}, "text/plain": "bar"})
    assert cleaned(output)[0].data == {"text/plain": "bar"}


def test_timings_go_tags_and_alt_text_stay_and_the_original_is_untouched():
    picture = new.new_output("display_data", data={"image/png": "AA=="}, metadata={"image/png": {"alt": "a line"}})
    cell = new.new_code_cell("1", metadata={"papermill": {"duration": 1}, "tags": ["a"]}, outputs=[picture])
    notebook = new.new_notebook(cells=[cell], metadata={"papermill": {"duration": 1}, "widgets": {}})
    made = pages.clean(notebook)
    assert made.metadata == {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    assert made.cells[0].metadata == {"tags": ["a"]}
    assert made.cells[0].outputs == [picture]
    assert notebook.cells[0].metadata.papermill == {"duration": 1}
    assert pages.clean(made) == made


def test_a_page_needs_no_script_and_no_network():
    html = page("# Title\n\n$a$", "[other](https://example.org)")
    assert "<script" not in html
    loaded = re.findall(r'(?:src|@import|<link[^>]*href)\s*=?\s*"?([^"\s>]+)', html)
    assert [address for address in loaded if address.startswith("http")] == []


def test_formulas_become_mathml_and_code_does_not():
    html = page("inline $x^2$\n\n$$\\frac{1}{2}$$\n\n\\begin{equation}a<b\\end{equation}\n\n`$y$`")
    assert html.count("<math") == 3
    assert re.search(r"<msup><mi>x</mi><mn>2</mn></msup>", html)
    assert re.search(r'<math display="block"[^>]*><mrow><mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn>', html)
    assert "<code>$y$</code>" in html


def test_a_formula_that_cannot_be_converted_is_shown_as_written():
    assert '<code class="formula">x_1_2</code>' in page("$x_1_2$")


def test_links_to_lessons_become_links_to_pages():
    html = page("[a](03_grad_cam.ipynb) [b](03_grad_cam.ipynb#summary) [c](https://example.org/x.ipynb)")
    assert 'href="03_grad_cam.html"' in html
    assert 'href="03_grad_cam.html#summary"' in html
    assert 'href="https://example.org/x.ipynb"' in html


def test_figures_have_their_alt_text():
    data = base64.b64encode(b"picture").decode()
    picture = new.new_output("display_data", data={"image/png": data}, metadata={"image/png": {"alt": 'a "map" < 1'}})
    html = pages.to_html(new.new_notebook(cells=[new.new_code_cell("1", outputs=[picture])]), "title")
    found = re.search(r"<img alt='a \"map\" &lt; 1' src=\"data:image/png;base64,([^\"]+)\"", html)
    assert found.group(1) == data

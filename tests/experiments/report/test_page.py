"""Each format, read back by a parser that knows nothing of how it was written."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from experiments.report.page import (
    Document,
    Heading,
    Items,
    Picture,
    Table,
    Text,
    to_html,
    to_latex,
    to_markdown,
)

NASTY = ["a|b", "<script>x</script>", "50 % & $x_1^2$ #1 {~} \\n", "[2, 4]", "*", "± —", '"q" \'']
TABLE = Table(["key", "AP"], [[text, "1.0"] for text in NASTY], marked=1)

# What may stand in a cell: printable, no backticks, which are code.
cells = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="`"))
tables = st.integers(1, 4).flatmap(
    lambda width: st.builds(
        Table,
        st.lists(cells, min_size=width, max_size=width),
        st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=3),
    )
)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def read_html(page: str) -> ET.Element:
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page)


@given(tables)
def test_html_holds_every_cell_as_it_was(table):
    root = read_html(to_html(Document("t", [table]), Path()))
    head, *lines = ([cell.text or "" for cell in line] for line in root.iter("tr"))
    assert [head, *lines] == [table.columns, *table.lines]


@given(tables)
def test_markdown_holds_every_cell_as_it_was(table):
    lines = to_markdown(Document("t", [table])).splitlines()[2:]
    found = [read_markdown_line(line) for line in (lines[0], *lines[2:])]
    assert found == [[squeezed(cell) for cell in line] for line in (table.columns, *table.lines)]


def read_markdown_line(line: str) -> list[str]:
    """Split at bars that no backslash escapes."""
    found, cell, escaped = [], "", False
    for character in line:
        if escaped or character not in "\\|":
            cell, escaped = cell + character, False
        elif character == "\\":
            escaped = True
        else:
            found.append(cell.strip())
            cell = ""
    return found[1:]


def read_latex(source: str) -> list[list[str]]:
    """Return the cells of a tabular, by TeX's rules.

    A comment runs to the end of its line; ``{`` and ``}`` pair up; ``&`` ends a cell and ``\\\\`` a
    line; ``[`` and ``*`` after ``\\\\`` would be its arguments; ``_ ^ $ # ~`` need a backslash.
    """
    names = {
        r"\textbackslash": "\\", r"\textasciitilde": "~", r"\^": "^", r"\textbar": "|",
        r"\ensuremath": "", r"\toprule": "", r"\midrule": "", r"\bottomrule": "",
        r"\addlinespace": "",
    }  # fmt: skip
    (body,) = re.findall(r"\\begin\{tabular\}\{[lr]+\}(.*?)\\end\{tabular\}", source, re.DOTALL)
    tokens = re.findall(r"\\[a-zA-Z]+|\\.|\$[^$]*\$|.", body, re.DOTALL)
    lines: list[list[str]] = [[""]]
    depth, after_break = 0, False
    for token in tokens:
        assert token not in ("_", "^", "$", "#", "~", "%"), f"{token} is not escaped"
        if after_break and not token.isspace():
            assert token not in ("[", "*")
            after_break = False
        if token in ("{", "}"):
            depth += 1 if token == "{" else -1
            assert depth in (0, 1)
        elif token == "&":
            lines[-1].append("")
        elif token == r"\\":
            lines.append([""])
            after_break = True
        elif token in names:
            lines[-1][-1] += names[token]
        elif token.startswith("\\"):
            assert token[1] in "&%$#_{}", f"{token} is no command that is known"
            lines[-1][-1] += token[1]
        else:
            lines[-1][-1] += token.replace(r"$\pm$", "±")
    assert depth == 0
    assert [squeezed(cell) for cell in lines.pop()] == [""]
    return [[squeezed(cell) for cell in line] for line in lines]


@given(tables)
@example(Table(["k", "AP"], [["±", "1"], ["[2, 4]", "1"], ["*", "1"]]))
def test_latex_holds_every_cell_as_it_was(table):
    source = to_latex(table, caption="c", label="l")
    expected = [[squeezed(cell) for cell in line] for line in (table.columns, *table.lines)]
    assert read_latex(source) == expected


def test_the_latex_float_is_whole():
    source = to_latex(TABLE, caption="100 % of_it", label="my study: 1")
    assert re.findall(r"\\(begin|end)\{([a-z*]+)\}", source) == [
        ("begin", "table*"), ("begin", "tabular"), ("end", "tabular"), ("end", "table*"),
    ]  # fmt: skip
    assert r"\caption{100 \% of\_it}" in source and r"\label{tab:my-study--1}" in source
    assert source.count(r"\toprule") == source.count(r"\bottomrule") == 1


def test_a_page_needs_nothing_else(tmp_path):
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    blocks = [
        Text("run `a --b <c>` & go"), Text("mixed", warning=True), Heading("A & B"), TABLE,
        Items(["one", "`two`"]), Picture(Path("a.png"), "A <picture>"),
    ]  # fmt: skip
    page = to_html(Document("A & B", blocks), tmp_path)
    root = read_html(page)
    assert root.find("body/p/code").text == "a --b <c>"
    assert [item.text or item[0].text for item in root.iter("li")] == ["one", "two"]
    assert [line.get("class") for line in root.iter("tr")][1:4] == [None, "baseline", None]
    (image,) = root.iter("img")
    assert image.get("src").startswith("data:image/svg+xml;base64,")
    assert image.get("alt") == "A <picture>"
    assert not list(root.iter("script")) and not list(root.iter("link"))
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_markdown_as_a_whole():
    blocks = [
        Text("Which?"), Text("mixed", warning=True), Heading("More"), Items(["a", "b"]),
        Picture(Path("plots", "x.png"), "X"),
    ]  # fmt: skip
    assert to_markdown(Document("study", blocks)) == (
        "# study\n\nWhich?\n\n> **Warning:** mixed\n\n## More\n\n- a\n- b\n\n![X](plots/x.png)\n"
    )

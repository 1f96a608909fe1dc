"""A text with tables and pictures as Markdown and as one HTML page; a table as LaTeX."""

from __future__ import annotations

import base64
import html
import re
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate


@dataclass(frozen=True)
class Heading:
    """A heading of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands in backticks is code. A warning stands out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Items:
    """A list of points."""

    texts: list[str]


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        columns: their names.
        lines: cells of each line.
        labels: how many columns, from the left, say what a line is about.
        marked: the line that the others are compared with.
    """

    columns: list[str]
    lines: list[list[str]]
    labels: int = 1
    marked: int | None = None


@dataclass(frozen=True)
class Picture:
    """A picture in a file, which exists as PNG and as SVG.

    Attributes:
        path: of the PNG, relative to the document.
        title: what it shows.
    """

    path: Path
    title: str


Block = Heading | Text | Items | Table | Picture


@dataclass(frozen=True)
class Document:
    """A title and what follows it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def to_markdown(document: Document) -> str:
    """Write a document as GitHub's Markdown."""
    parts = [f"# {document.title}", *map(_block_as_markdown, document.blocks)]
    return "\n\n".join(parts) + "\n"


def _block_as_markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Text):
        return f"> **Warning:** {block.text}" if block.warning else block.text
    if isinstance(block, Items):
        return "\n".join(f"- {text}" for text in block.texts)
    if isinstance(block, Picture):
        return f"![{block.title}]({block.path.as_posix()})"
    lines = [[_escape_markdown(cell) for cell in line] for line in block.lines]
    columns = [_escape_markdown(name) for name in block.columns]
    return tabulate(lines, columns, tablefmt="pipe", disable_numparse=True)


def _escape_markdown(cell: str) -> str:
    return re.sub(r"([|\\<*])", r"\\\1", " ".join(cell.split()))


def to_latex(table: Table, *, caption: str, label: str) -> str:
    """Write a table as a float for ``\\input``, of the package booktabs."""
    lines = [
        " & ".join(map(_escape_latex, line)) + r" \\" for line in [table.columns, *table.lines]
    ]
    if table.marked is not None and len(table.lines) > 1:
        lines[1 + table.marked] += r" \addlinespace"
    form = "l" * table.labels + "r" * (len(table.columns) - table.labels)
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs} in the preamble.",
            r"\begin{table*}",
            r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{_escape_latex(caption)}}}",
            rf"  \label{{tab:{re.sub('[^a-zA-Z0-9.-]', '-', label)}}}",
            rf"  \begin{{tabular}}{{{form}}}",
            r"    \toprule",
            f"    {lines[0]}",
            r"    \midrule",
            *(f"    {line}" for line in lines[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after \\ it would begin an option
    "*": "{*}",  # the same
    "±": r"$\pm$",
    "—": "--",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_html(document: Document, folder: Path) -> str:
    """Write a document as one page that needs no other file and no network.

    Args:
        document: of which pictures are taken as SVG.
        folder: what their paths are relative to.
    """
    body = "\n".join(_block_as_html(block, folder) for block in document.blocks)
    title = html.escape(document.title)
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def _block_as_html(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Text):
        kind = ' class="warning"' if block.warning else ""
        return f"<p{kind}>{_inline(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in block.texts) + "</ul>"
    if isinstance(block, Picture):
        # As an image and not inline: names inside one SVG would clash with those of the next.
        data = base64.b64encode((folder / block.path).with_suffix(".svg").read_bytes()).decode()
        title = html.escape(block.title)
        return (
            f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{title}"/>'
            f"<figcaption>{title}</figcaption></figure>"
        )
    head = "".join(_cell("th", name, i < block.labels) for i, name in enumerate(block.columns))
    lines = "\n".join(
        ('<tr class="baseline">' if number == block.marked else "<tr>")
        + "".join(_cell("td", cell, i < block.labels) for i, cell in enumerate(line))
        + "</tr>"
        for number, line in enumerate(block.lines)
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(tag: str, text: str, label: bool) -> str:
    kind = ' class="label"' if label else ""
    return f"<{tag}{kind}>{_inline(text)}</{tag}>"


def _inline(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


_STYLE = """
:root { --ink: #1c2330; --soft: #5d6778; --paper: #fff; --line: #dfe3ea; --tint: #eef4ff;
        --accent: #2459c4; --alarm: #a33a00; --alarm-tint: #fff3e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ef; --soft: #98a2b3; --paper: #14171c; --line: #2c323c; --tint: #1b2637;
          --accent: #84aeff; --alarm: #ffb480; --alarm-tint: #33231a; }
  img { filter: invert(0.92) hue-rotate(180deg); }
}
body { color: var(--ink); background: var(--paper); max-width: 84rem; margin: 0 auto;
       padding: 2rem 1.5rem 4rem; font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.3rem; }
h1 + p { color: var(--soft); font-size: 1.1rem; margin: 0 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 0.6rem; border-top: 1px solid var(--line);
     padding-top: 1.2rem; }
p, ul { max-width: 60rem; }
p.warning { color: var(--alarm); background: var(--alarm-tint); padding: 0.7rem 1rem;
            border-left: 4px solid; }
.table { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.5rem; text-align: right; vertical-align: top;
         border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
td:last-child { white-space: normal; min-width: 7rem; }
.label { text-align: left; }
tr.baseline td { background: var(--tint); }
tr.baseline td.label { color: var(--accent); font-weight: 600; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 0.85rem; }
code { font: 0.9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
li { margin: 0.15rem 0; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
               th, td { white-space: normal; }
               tr, figure { break-inside: avoid; } }
"""

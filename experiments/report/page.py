"""Documents of text, tables and pictures as Markdown and HTML; a table as LaTeX."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from tabulate import LATEX_ESCAPE_RULES, tabulate


@dataclass(frozen=True)
class Heading:
    """A heading of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; text in backticks is code. A warning is highlighted."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    texts: list[str]


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    columns: list[str]
    lines: list[list[str]]
    labels: int = 1  # columns, from the left, that name a line
    marked: int | None = None  # index of the line that the others are compared with


@dataclass(frozen=True)
class Picture:
    """A picture that exists as PNG and as SVG."""

    path: Path  # of the PNG, relative to the document
    title: str


Block = Heading | Text | Items | Table | Picture


@dataclass(frozen=True)
class Document:
    """A title and what follows it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def to_markdown(document: Document) -> str:
    """Return a document as GitHub's Markdown."""
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
    """Return a table as a float for ``\\input``; it needs the package booktabs."""
    lines = [[" ".join(cell.split()) for cell in line] for line in [table.columns, *table.lines]]
    align = ["left"] * table.labels + ["right"] * (len(table.columns) - table.labels)
    body = tabulate(
        lines, "firstrow", tablefmt="latex_booktabs", disable_numparse=True, colalign=align
    ).splitlines()
    if table.marked is not None and len(table.lines) > 1:
        body[4 + table.marked] += r" \addlinespace"
    escaped = "".join(LATEX_ESCAPE_RULES.get(each, each) for each in " ".join(caption.split()))
    source = [
        r"% Needs \usepackage{booktabs} in the preamble.",
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escaped.translate(_LATEX)}}}",
        rf"\label{{tab:{re.sub('[^a-zA-Z0-9.-]', '-', label)}}}",
        *(line.translate(_LATEX) for line in body),
        r"\end{table*}",
    ]
    return "\n".join(source) + "\n"


# What tabulate does not escape and never writes itself. "[" and "*" after \\ are its arguments.
_LATEX = str.maketrans({"|": r"\textbar{}", "[": "{[}", "*": "{*}", "±": r"$\pm$", "—": "--"})


def to_html(document: Document, folder: Path) -> str:
    """Return a document as one page that needs no other file and no network.

    Its pictures are embedded as SVG; their paths are relative to ``folder``.
    """

    def svg(picture: Picture) -> str:
        file = (folder / picture.path).with_suffix(".svg")
        return base64.b64encode(file.read_bytes()).decode()

    blocks = [(type(block).__name__, block) for block in document.blocks]
    page = _TEMPLATES.get_template("page.html")
    return page.render(title=document.title, blocks=blocks, svg=svg)


def _mark_code(text: str) -> Markup:
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


_TEMPLATES = Environment(
    loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_TEMPLATES.filters["code"] = _mark_code

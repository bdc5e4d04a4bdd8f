"""Building blocks of the HTML reports: escaped text, tables, bars, embedded images, and the style sheet.

Everything that comes from outside is escaped here, so that no caption or reply can become markup.
"""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #181a1f; --soft: #656b78; --line: #e2e5ea; --ground: #fff; --panel: #f6f7f9;
  --accent: #4c78c8; --right: #1d7f4c; --wrong: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ee; --soft: #9aa1af; --line: #343943; --ground: #15171b;
  --panel: #1d2026; --accent: #7ba1e6; --right: #5cc48d; --wrong: #ee8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 68rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif,
  "Apple Color Emoji", "Segoe UI Emoji", "Noto Color Emoji"; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 3.25rem 0 0.4rem; font-size: 1.2rem; letter-spacing: -0.005em; }
p { margin: 0.4rem 0 1rem; max-width: 50rem; color: var(--soft); text-wrap: pretty; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th { padding: 0.45rem 0.9rem 0.45rem 0; border-bottom: 1px solid var(--line); color: var(--soft); font-weight: 500;
  text-align: right; white-space: nowrap; }
td { padding: 0.45rem 0.9rem 0.45rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
td:first-child { min-width: 11rem; }
td.words { text-align: left; overflow-wrap: anywhere; }
.bar { position: relative; display: inline-block; width: 9rem; height: 0.55rem; border-radius: 0.3rem;
  background: var(--line); }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 0.3rem; background: var(--accent); }
.bar b { position: absolute; top: -0.2rem; bottom: -0.2rem; width: 2px; background: var(--ink); }
.grid { display: block; width: 100%; max-width: 1132px; border: 1px solid var(--line); border-radius: 0.6rem;
  background: #fff; }
.curves svg { width: 100%; height: auto; }
.curves svg text { font-family: inherit !important; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: 0.9rem; }
.card { display: flex; gap: 0.9rem; padding: 0.8rem; border-radius: 0.6rem; background: var(--panel);
  font-size: 0.88rem; }
.card img { width: 72px; height: 72px; flex: none; border-radius: 0.35rem; }
.card div { min-width: 0; overflow-wrap: anywhere; }
.card .asked { color: var(--soft); }
.right::before { content: "\\2713\\00a0"; color: var(--right); font-weight: 700; }
.wrong::before { content: "\\2717\\00a0"; color: var(--wrong); font-weight: 700; }
.truth { color: var(--soft); }
.learned { margin: 1.6rem 0 2rem; padding: 0; list-style: none; }
.learned li { margin: 0 0 0.7rem; max-width: 50rem; }
.learned strong { font-size: 1.15rem; }
.learned small { display: block; font-size: 0.92rem; color: var(--soft); }
details { margin: 2.2rem 0 0; }
summary { cursor: pointer; font-size: 1.2rem; font-weight: 700; }
details details { margin: 0.8rem 0 0; }
details details summary { font-size: 1rem; font-weight: 500; }
"""


def text(value: object) -> str:
    """Any value as escaped text."""
    return html.escape(str(value))


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def bar(value: float | None, mark: float | None) -> str:
    """A share as a bar, with a tick at `mark` (chance, or a control)."""
    if value is None:
        return ""
    tick = "" if mark is None else f'<b style="left:{100 * mark:.1f}%"></b>'
    return f'<span class="bar"><i style="width:{100 * value:.1f}%"></i>{tick}</span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """A table of cells that are already markup; `words` aligns all cells to the left."""
    cell = '<td class="words">' if words else "<td>"
    heads = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'{cell}{value}</td>' for value in row)}</tr>" for row in rows)
    top = f"<thead><tr>{heads}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def picture(image: Image.Image, *, alt: str, css: str = "") -> str:
    """An `<img>` with its PNG embedded."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{css}" alt="{text(alt)}" src="data:image/png;base64,{data}">'


def section(title: str, note: str, content: str) -> str:
    """A titled section of the page; "" if it has no content."""
    return f"<section><h2>{text(title)}</h2><p>{text(note)}</p>{content}</section>" if content else ""


def folded(title: str, note: str, content: str) -> str:
    """A section that the reader opens; "" if it has no content."""
    words = f"<p>{text(note)}</p>" if note else ""
    return f"<details><summary>{text(title)}</summary>{words}{content}</details>" if content else ""


def statements(lines: Sequence[tuple[str, str]]) -> str:
    """Short sentences that are already markup, each with what to compare it with; "" without any."""
    items = "".join(f"<li>{line}<small>{note}</small></li>" for line, note in lines)
    return f'<ul class="learned">{items}</ul>' if items else ""


def page(title: str, note: str, sections: Sequence[str]) -> str:
    """The whole document, which loads nothing from elsewhere."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{text(title)}</h1><p>{text(note)}</p>{''.join(sections)}</body></html>\n"
    )

"""HTML in which all text is escaped, as one page that loads nothing and runs nothing."""

from collections.abc import Sequence
from html import escape

# no script, and nothing from another place, whatever a name in the page may say
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
body { margin: 0 auto; max-width: 76rem; padding: 0 .8rem 2rem; color: #222; background: #fff;
  font: 16px/1.45 system-ui, sans-serif; }
h1 { margin: .8rem 0 0; font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { margin: 1.8rem 0 .4rem; font-size: 1.1rem; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
small, figcaption { color: #555; font-size: .85rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
.panels { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.legend { position: sticky; top: 0; padding: .4rem 0; background: #fffe;
  border-bottom: 1px solid #ddd; font-size: .85rem; overflow-wrap: anywhere; }
.legend span { display: inline-block; margin-right: 1rem; }
.legend svg { width: 2.4rem; height: .8rem; margin-right: .3rem; vertical-align: middle; }
.scroll { max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem .15rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #eee; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
td { max-width: 24rem; overflow: hidden; text-overflow: ellipsis; }
details { margin: .4rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { max-width: 100%; overflow-x: auto; font-size: .8rem; }
.running { color: #06c; } .stopped { color: #b00; }
"""


class Markup(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def element(name: str, *inside: str, **attributes: str) -> Markup:
    """Return an element with what is inside it; an attribute's name may end with an underscore."""
    said = "".join(f' {key.rstrip("_")}="{escape(text)}"' for key, text in attributes.items())
    return Markup(f"<{name}{said}>{joined(inside)}</{name}>")


def joined(parts: Sequence[str]) -> Markup:
    """Return parts one after the other, those escaped that are no Markup."""
    return Markup("".join(p if isinstance(p, Markup) else escape(p) for p in parts))


def table(rows: Sequence[Sequence[str]], class_: str = "") -> Markup:
    """Return a table, of which the first row is the header, that scrolls where it is too wide."""
    header, *others = rows
    head = element("tr", *(element("th", text) for text in header))
    body = [element("tr", *(element("td", text) for text in row)) for row in others]
    whole = element("table", element("thead", head), element("tbody", *body), class_=class_)
    return element("div", whole, class_="scroll")


def page(title: str, *inside: str, renew_s: int | None = None) -> str:
    """Return a page of its own.

    Args:
        title: of the page.
        inside: its body.
        renew_s: seconds after which whoever looks at it gets what it is then; None for never.
    """
    head = [
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        Markup(f"<style>{_STYLE}</style>"),
    ]
    if renew_s is not None:
        head.insert(2, Markup(f'<meta http-equiv="refresh" content="{renew_s}">'))
    whole = element("html", element("head", *head), element("body", *inside), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"

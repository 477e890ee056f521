"""Reading HTML back: what a browser would make of it, as far as safety and access are concerned."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "hr", "img", "meta", "input"}
ALLOWED = {
    "html", "head", "body", "title", "meta", "style", "main", "nav", "article", "section", "header", "footer", "div",
    "span", "bdi", "p", "h1", "h2", "h3", "a", "ul", "ol", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody",
    "tr", "th", "td", "details", "summary", "svg", "g", "rect", "line", "text", "circle", "path", "mark", "small",
    "strong", "sup", "br",
}


@dataclass
class Element:
    """One start tag with the text inside it."""

    tag: str
    attributes: dict[str, str]
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Page(HTMLParser):
    """The elements of some HTML, in order; fails on tags that do not match and on anything that could act."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        html.encode("utf-8")  # no lone surrogates
        self.feed(html)
        self.close()
        assert not self._open, [e.tag for e in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        found = {name: value or "" for name, value in attrs}
        assert not [name for name in found if name.startswith("on")], found
        assert not found.get("href", "").lower().startswith("javascript"), found
        assert "src" not in found
        element = Element(tag, found)
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, (tag, [e.tag for e in self._open])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    def having(self, tag: str | None = None, **attributes: str) -> list[Element]:
        """Elements of a tag whose attributes have these values."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            e for e in self.elements
            if tag in (None, e.tag) and all(e.attributes.get(name) == value for name, value in wanted.items())
        ]

    @property
    def text(self) -> str:
        """All text but the style sheet's."""
        return "".join(e.text for e in self.elements[:1] if e.tag != "style")


def check_visible(text: str) -> None:
    """Nothing in it is invisible or turns the direction of writing."""
    import unicodedata

    odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]
    assert not odd, [hex(ord(c)) for c in odd]

"""A parser of HTML pages that checks them, and text that must be escaped in them."""

from collections import Counter
from html.parser import HTMLParser

EVIL = "</script></pre><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>&amp;\"'"
VOID = {"meta", "link", "img", "br", "hr", "input"}
REFERENCES = {"aria-labelledby", "aria-describedby", "for"}


class Page(HTMLParser):
    """Parse a page and check that elements are closed in order, ids are unique and nothing is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.named: set[str] = set()  # ids that other elements refer to
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, list[str]] = {}  # by element name
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        assert set(self.ids.values()) == {1}, f"duplicate ids: {[key for key, count in self.ids.items() if count > 1]}"
        assert self.named <= self.ids.keys(), f"missing ids: {self.named - self.ids.keys()}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, given))
        if "id" in given:
            self.ids[given["id"]] += 1
        for name in REFERENCES & given.keys():
            self.named |= set(given[name].split())
        for name in {"src", "href", "srcset", "data", "poster", "action", "xlink:href"} & given.keys():
            assert given[name].startswith(("data:", "#")), f"<{tag} {name}={given[name][:50]!r}> loads something"
            if given[name].startswith("#"):
                self.named.add(given[name][1:])
        assert not [name for name in given if name.startswith("on")], f"<{tag}> has an event handler"

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.elements if name == tag]

"""Markdown of answers as safe HTML for the page, and parsed for the terminal."""

from functools import cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

MAX_CHARACTERS = 50_000  # of one text; a longer one is shown as plain text
MAX_HIGHLIGHTED_CHARACTERS = 3_000  # of one block of code
# Many lexers have patterns that are quadratic or worse, and a pattern holds the GIL (autoit takes
# 146 s for 9,000 spaces). These were tried with long runs of every character: at most 0.3 s.
LANGUAGES = {
    "bash", "c", "cpp", "css", "diff", "go", "haskell", "html", "ini", "java", "javascript", "js",
    "json", "jsx", "kotlin", "latex", "lua", "perl", "php", "py", "pycon", "python", "r", "ruby",
    "rust", "scss", "sh", "shell", "sql", "swift", "toml", "ts", "tsx", "typescript", "xml", "yaml",
}  # fmt: skip
TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li",
    "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {"a": {"href", "title"}, "code": {"class"}, "span": {"class"}, "ol": {"start"}}


def to_html(text: str) -> str:
    """HTML without raw HTML, scripts and images; links lead to the web only."""
    if len(text) > MAX_CHARACTERS:
        return f"<pre>{nh3.clean_text(text)}</pre>"
    return nh3.clean(
        _parser().render(text),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},  # this page may be streaming
    )


def parse(text: str) -> list[Token]:
    """Parsed Markdown for the terminal; line breaks are kept as on the page."""
    tokens = _parser().parse(text)
    for child in (child for token in tokens for child in token.children or ()):
        if child.type == "softbreak":
            child.type = "hardbreak"
    return tokens


@cache
def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "highlight": _highlight}
    parser = MarkdownIt("commonmark", options)
    return parser.enable(["table", "strikethrough"]).disable("image")


def _highlight(code: str, language: str, _attributes: str) -> str:
    """Code with Pygments' span classes; "" makes the parser escape the code itself."""
    if language.lower() not in LANGUAGES or len(code) > MAX_HIGHLIGHTED_CHARACTERS:
        return ""
    return highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))

"""Markdown of answers as safe HTML for the page, and parsed for the terminal.

CommonMark with tables, strikethrough, bare links and task lists. Formulas stay as they are written,
and images become links: the page loads nothing from other hosts.
"""

import re
from collections.abc import Iterator
from functools import cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

MAX_CHARACTERS = 50_000  # of one text; a longer one is shown as plain text
MAX_HIGHLIGHTED_CHARACTERS = 3_000  # of one block of code
MAX_HIGHLIGHTED_LINES, MAX_HIGHLIGHTED_LINE = 150, 300  # what takes long has more or longer lines
MAX_FORMULA_CHARACTERS = 2_000  # the end is not looked for beyond: time stays linear
# Many lexers have patterns that are quadratic or worse, and a pattern holds the GIL (autoit takes
# 146 s for 9,000 spaces). These were tried with long runs of every character: at most 0.05 s.
LANGUAGES = {
    "bash", "c", "cpp", "css", "diff", "go", "haskell", "html", "ini", "java", "javascript", "js",
    "json", "jsx", "kotlin", "latex", "lua", "perl", "php", "py", "pycon", "python", "r", "ruby",
    "rust", "scss", "sh", "shell", "sql", "swift", "toml", "ts", "tsx", "typescript", "xml", "yaml",
}  # fmt: skip
TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li",
    "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {
    "a": {"href", "title"}, "code": {"class"}, "span": {"class"}, "ol": {"start"}, "li": {"class"},
    "td": {"align"}, "th": {"align"},
}  # fmt: skip
FORMULA_ENDS = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
URL = re.compile(r"""(?:https?://|\bwww\.)[^\s<>"`]*[^\s<>"`.,;:!?'*_~)\]}]""")
CHECKBOXES = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}


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
        child.type = {"softbreak": "hardbreak", "formula": "text"}.get(child.type, child.type)
    return tokens


@cache
def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "highlight": _highlight}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    parser.block.ruler.before("fence", "formula", _formula_block, {"alt": ["paragraph"]})
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.core.ruler.push("extensions", _extend)
    parser.add_render_rule("formula", _render_formula)
    return parser


# ---- formulas


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """$$ ... $$ or \\[ ... \\] over several lines, none of which is a heading or a list."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    if first[:2] not in ("$$", "\\["):
        return False
    last = FORMULA_ENDS[first[:2]]
    for line in range(start, min(end, start + 50)):
        text = first[2:] if line == start else state.src[state.bMarks[line] : state.eMarks[line]]
        if text.rstrip().endswith(last):
            if not silent:
                state.push("paragraph_open", "p", 1)
                content = state.getLines(start, line + 1, state.blkIndent, False).strip()
                token = state.push("inline", "", 0)
                token.content, token.children = content, []
                state.push("paragraph_close", "p", -1)
                state.line = line + 1
            return True
    return False


def _formula(state: StateInline, silent: bool) -> bool:
    """A formula between dollars or backslashed brackets; "$5 and $10" has none."""
    text, start = state.src, state.pos
    opening = text[start : start + 2]
    opening = opening if opening in FORMULA_ENDS else opening[:1]
    if opening not in FORMULA_ENDS:
        return False
    inner = start + len(opening)
    closing = FORMULA_ENDS[opening]
    end = text.find(closing, inner + 1, inner + MAX_FORMULA_CHARACTERS)
    if end < 0:
        return False
    after = text[end + len(closing) : end + len(closing) + 1]
    if opening == "$" and (
        text[inner].isspace()
        or text[end - 1].isspace()
        or after.isdigit()
        or "`" in text[inner:end]
    ):
        return False
    state.pos = end + len(closing)
    if not silent:
        state.push("formula", "", 0).content = text[start : state.pos]
    return True


def _render_formula(_: RendererHTML, tokens: list[Token], index: int, *__: object) -> str:
    return f'<span class="formula">{nh3.clean_text(tokens[index].content)}</span>'


# ---- other extensions


def _extend(state: StateCore) -> None:
    for index, token in enumerate(state.tokens):
        if style := token.attrs.pop("style", None):  # of table cells: "text-align:center"
            token.attrs["align"] = str(style).partition(":")[2]
        if token.type == "inline" and token.children:
            token.children = list(_with_links(token.children))
            first = token.children[0]
            box = CHECKBOXES.get(first.content[:4]) if first.type == "text" else None
            if box and index > 1 and state.tokens[index - 2].type == "list_item_open":
                first.content = box + first.content[4:]
                state.tokens[index - 2].attrs["class"] = "task"


def _with_links(tokens: list[Token]) -> Iterator[Token]:
    """The tokens of a line, with bare addresses and images as links."""
    is_in_link = False
    for token in tokens:
        is_in_link = token.type == "link_open" or (is_in_link and token.type != "link_close")
        source = str(token.attrs.get("src", ""))
        if token.type == "image":
            is_linked = not is_in_link and source.startswith(("http://", "https://"))
            yield from _link(source, token.content) if is_linked else [_text(token.content)]
        elif token.type == "text" and not is_in_link:
            start = 0
            for match in URL.finditer(token.content):
                address, end = match[0], match.end()
                if address.count("(") > address.count(")") and token.content[end : end + 1] == ")":
                    address, end = address + ")", end + 1
                yield _text(token.content[start : match.start()])
                yield from _link("http://" * address.startswith("www.") + address, address)
                start = end
            yield _text(token.content[start:])
        else:
            yield token


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _link(address: str, text: str) -> list[Token]:
    opening = Token("link_open", "a", 1, attrs={"href": address})
    return [opening, _text(text), Token("link_close", "a", -1)]


# ---- code


def _highlight(code: str, language: str, _attributes: str) -> str:
    """Code with Pygments' span classes; "" makes the parser escape the code itself."""
    lines = code.splitlines()
    is_short = (
        len(code) <= MAX_HIGHLIGHTED_CHARACTERS
        and len(lines) <= MAX_HIGHLIGHTED_LINES
        and max(map(len, lines), default=0) <= MAX_HIGHLIGHTED_LINE
    )
    if language.lower() not in LANGUAGES or not is_short:
        return ""
    return highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))

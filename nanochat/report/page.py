"""report.html: one file without scripts or outside requests, laid out by page.html."""

import re
from pathlib import Path

from nanochat.report import figures
from nanochat.report.content import Content, explanation, sources

TEMPLATE = Path(__file__).with_name("page.html")


def render(content: Content) -> str:
    """The page. Everything that is not a figure is escaped, whatever a model wrote."""
    # Imported here: every command imports this package.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    def tokens(text: str) -> Markup:
        """Special tokens of an answer in a fainter color."""
        marked = re.sub(r"&lt;\|\w+\|&gt;", r'<span class="token">\g<0></span>', str(escape(text)))
        return Markup(marked)

    def svg(panel: figures.Panel, name: str) -> Markup:
        label = escape(f"{panel.title} by {panel.x_label}")
        drawn = figures.as_svg(panel, name)
        return Markup(drawn.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"tokens": tokens, "svg": svg}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        content=content,
        explanation=explanation,
        files_of=sources,
        panels=figures.panels_of,
    )

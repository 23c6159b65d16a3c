"""report.md: the same content as plain Markdown, readable as text and on GitHub."""

import re
from collections.abc import Sequence

from nanochat.report import figures
from nanochat.report.content import Content, explanation, sources
from nanochat.report.sections import SectionData

# Punctuation that could begin markup; an underscore inside a word cannot.
MARKUP = re.compile(r"[\\`*\[\]<>|#~&$]|(?<!\w)_|_(?!\w)")


def render(content: Content) -> str:
    """The report; writes the curves as PNG beside it."""
    where = " or ".join(f"{place} with `{c}`" for place, c in content.commands().items())
    parts = [
        "# nanochat report",
        escaped(" ".join(content.summary())) + f" Talk to it {where}.",
        _results(content),
        _time(content),
        _machine(content),
        _core(content),
        _sandbox(content),
        *map(_section, content.sections),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    r"""One line of plain text that Markdown shows as it is: a\|b, word_problems."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _table(rows: Sequence[Sequence[str]], rule: str = "--:") -> str:
    """A Markdown table, header first; `rule` aligns all columns but the first."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in cells]
    lines.insert(1, f"|---|{f'{rule}|' * (len(rows[0]) - 1)}")
    return "\n".join(lines)


def _sources(files: Sequence[str]) -> str:
    return f"From {', '.join(f'`{file}`' for file in files)}."


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _results(content: Content) -> str:
    if not content.results:
        return ""
    table = [["", *content.columns]]
    for label, scores in content.results.items():
        found = [scores.get(column) for column in content.columns]
        cells = [score.with_interval if score else "-" for score in found]
        table.append([label, *cells])
    note = "Measured on text and questions that are not trained on"
    note += ", with intervals of 95 %." if content.has_intervals else "."
    meanings = [f"- {escaped(x)}: {explanation(x)}" for x in content.results if explanation(x)]
    parts = ["## Results", note, _table(table), _sources(content.files("table"))]
    if meanings:
        parts.append(_folded("What is measured", "\n".join(meanings)))
    return "\n\n".join(parts)


def _time(content: Content) -> str:
    rows = [[row.title, *content.amounts(row)] for row in content.time()]
    if not rows:
        return ""
    total = ["total", *content.amounts(content.total())]
    table = _table([["stage", *content.units], *rows, total])
    return "\n\n".join(["## Time and cost", table, _sources(["sections/*.json"])])


def _machine(content: Content) -> str:
    rows = [["", ""], *([name, value] for name, value in content.machine().items())]
    return "## Machine\n\n" + _table(rows, rule="---")


def _core(content: Content) -> str:
    groups = content.core_bars()
    if not groups:
        return ""
    head = ["centered accuracy", *(bar.name for bar in groups[0].bars)]
    rows = [[group.label, *(bar.text for bar in group.bars)] for group in groups]
    return "## CORE by task, beside GPT-2\n\n" + _table([head, *rows])


def _sandbox(content: Content) -> str:
    lines = [
        f"Programs that the model wrote ran at level {escaped(level)}. {_sources(files)}"
        for level, files in content.sandbox().items()
    ]
    return "\n\n".join(["## Sandbox", *lines]) if lines else ""


def _section(section: SectionData) -> str:
    parts = [f"## {escaped(section.title)}", *map(escaped, section.notes)]
    if section.metrics:
        parts.append(_table([["", ""], *map(list, section.metrics.items())]))
    if section.rows:
        parts.append(_table(section.rows))
    if plot := figures.write_png(section):
        parts.append(f"![{escaped(section.title)}]({plot.name})")
    parts += [_sample(prompt, answer) for prompt, answer in section.samples]
    if section.settings:
        settings = "\n".join(f"{name} = {value}" for name, value in section.settings.items())
        parts.append(_folded("Settings", _code(settings)))
    parts.append(_sources(sources(section)))
    return "\n\n".join(parts)


def _sample(prompt: str, answer: str) -> str:
    return _code(f"{prompt.strip()}\n\n{answer.strip()}")


def _code(text: str) -> str:
    """A code block, in which nothing is markup: its fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"

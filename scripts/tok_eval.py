"""How well the tokenizer compresses, by kind of text, beside other vocabularies.

python -m scripts.tok_eval
python -m scripts.tok_eval --show "Hello, world! It's 1234."     a text cut into tokens
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from nanochat import dataset, paths, report
from nanochat.configurator import parse, run
from nanochat.data.tokenizer_formats import published_encoding
from nanochat.errors import UserError
from nanochat.tokenizer import (
    HuggingFaceTokenizer,
    RustBPETokenizer,
    TiktokenTokenizer,
    get_tokenizer,
)

logger = logging.getLogger(__name__)

SECTION = "tok_eval"
BACKENDS = {"tiktoken": TiktokenTokenizer, "Hugging Face tokenizers": HuggingFaceTokenizer}
PUBLISHED = {"GPT-2": "r50k_base", "GPT-4": "cl100k_base"}
COLOURS = ("cyan", "green", "yellow", "magenta", "bright_blue")
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"})
LONGEST_MEAN_WORD = 20  # characters; above it the script sets no spaces between words

SAMPLES = {
    "news": """\
The harbour town of Velmouth will close its old swing bridge for nine weeks from Monday, the
council said on Thursday evening, after engineers found cracks in two of the bearings. Buses will
run along the coast road instead, and a free ferry will cross the river every twenty minutes
between 6 a.m. and 10 p.m. "We know it's a nuisance," said Ruth Adeyemi, who leads the works, "but
waiting another winter would cost us three times as much." Shop owners on the north bank aren't
convinced: takings fell by 18 per cent during the last closure, in 2019, and compensation of
£240,000 was paid out only after a year. Fishing boats may pass as before.
""",
    "code": '''\
def running_mean(values: list[float], width: int = 5) -> list[float]:
    """Means of the last `width` values; shorter at the start."""
    total, window, means = 0.0, [], []
    for i, value in enumerate(values):
        window.append(value)
        total += value
        if len(window) > width:
            total -= window.pop(0)
        means.append(total / len(window))  # never empty here
    return means


if __name__ == "__main__":
    assert running_mean([1, 2, 3], width=2) == [1.0, 1.5, 2.5], "off by one?"
    for (int i = 0; i < n && buffer[i] != '\\0'; ++i) { hash = (hash * 31u) ^ buffer[i]; }
    const names = users.filter(user => user.age >= 18).map(({ name }) => `<li>${name}</li>`);
    SELECT city, COUNT(*) AS n FROM visits WHERE day > '2024-01-31' GROUP BY city ORDER BY n DESC;
''',
    "mathematics": r"""Let $f(x) = x^3 - 3x + 1$. Then $f'(x) = 3x^2 - 3 = 3(x - 1)(x + 1)$, so
the extrema lie at $x = \pm 1$ with $f(-1) = 3$ and $f(1) = -1$; by the intermediate value theorem
there are three real roots. Newton's step is $x_{n+1} = x_n - \frac{f(x_n)}{f'(x_n)}$: from
$x_0 = 0.5$ one gets 0.33333333, 0.34722222, 0.34729635. Hence
\[ \sum_{k=1}^{n} k^2 = \frac{n(n+1)(2n+1)}{6}, \quad \int_0^1 \sqrt{1 - t^2}\,dt = \frac{\pi}{4} \]
A box holds 1,024 screws of 17 g each: 1024 * 17 = 17408 g, that is 17.408 kg. 7/8 - 2/3 = 5/24.
∀ε > 0 ∃δ > 0: |x − a| < δ ⇒ |f(x) − f(a)| < ε; 2⁶⁴ ≈ 1.8 × 10¹⁹.
""",
    "German": """\
Am Morgen lag dichter Nebel über dem Fluss, und die Fähre fuhr erst gegen halb neun. Großmutter
hatte Äpfel, Käse und eine Thermosflasche eingepackt; wir saßen auf der Bank am Ufer und zählten
die Möwen. „Früher“, sagte sie, „brauchte man für die Überfahrt eine Dreiviertelstunde.“
""",
    "Russian": """\
Утром над рекой стоял густой туман, и паром отошёл только в половине девятого. Бабушка взяла с
собой яблоки, сыр и горячий чай; мы сидели на скамейке у берега и считали чаек.
""",
    "Greek": """\
Το πρωί το ποτάμι ήταν σκεπασμένο με πυκνή ομίχλη και το πλοίο έφυγε μόλις στις οκτώμισι. Η γιαγιά
είχε φέρει μήλα, τυρί και ζεστό τσάι.
""",
    "Arabic": """\
في الصباح غطى الضباب الكثيف النهر، ولم تبحر العبارة إلا في الثامنة والنصف. أحضرت جدتي التفاح
والجبن والشاي الساخن، وجلسنا على المقعد عند الضفة نعد طيور النورس.
""",
    "Hindi": """\
सुबह नदी पर घना कोहरा था और नाव साढ़े आठ बजे ही चल सकी। दादी सेब, पनीर और गरम चाय साथ लाई थीं; हम
किनारे की बेंच पर बैठकर पक्षियों को गिनते रहे।
""",
    "Chinese": """\
早晨，河面上笼罩着浓雾，渡船直到八点半才开出。奶奶带了苹果、奶酪和一壶热茶，我们坐在岸边的长椅上数海鸥。
""",
    "Japanese": """\
朝の川には深い霧がかかり、渡し船が出たのは八時半になってからだった。祖母はりんごとチーズと温かいお茶を持ってきて、
私たちは岸のベンチに座ってカモメを数えた。
""",
    "Korean": """\
아침에 강 위에는 짙은 안개가 끼어 있었고, 나룻배는 여덟 시 반이 되어서야 떠났다.
할머니는 사과와 치즈와 따뜻한 차를 가져오셨고 우리는 의자에 앉아 갈매기를 세었다.
""",
    "emoji": """\
Great day out! 🌊⛴️ 10/10 👍🏽 the kids loved the seagulls 🐦🐦🐦 and Gran's picnic 🍎🧀☕ — see you
all next week 👨‍👩‍👧‍👦 ❤️‍🔥 🇬🇧🇫🇷 ¯\\_(ツ)_/¯
""",
}


@dataclass(frozen=True)
class Options:
    """How well the tokenizer compresses, by kind of text, beside other vocabularies."""

    max_chars: int = 4_000_000
    """Characters of training and of validation text to measure."""
    show: str | None = None
    """A text: it is printed cut into coloured tokens with their ids, and nothing is measured."""
    fresh: bool = False
    """Measure again what has been measured."""


def main(argv: list[str] | None = None) -> None:
    """Measure, or say that it is done; or show one text."""
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.max_chars < 1:
        raise UserError(f"--max_chars={options.max_chars} leaves nothing to measure; use 1 or more")
    tokenizer = get_tokenizer()
    if options.show is not None:
        show(tokenizer, options.show)
        return
    settings = {
        "source": dataset.current_source(),
        "tokenizer": tokenizer.content_hash,
        "max_chars": options.max_chars,
    }
    done = report.read_section(SECTION) or {}
    if done.get("settings") == settings and not options.fresh:
        logger.info("the tokenizer is measured already: %s", paths.report_dir())
        return
    began = time.perf_counter()
    kinds = _kinds_of_text(options.max_chars)
    notes = _agreement(tokenizer, kinds)
    others, missing = _published()
    rows = _table(tokenizer, others, kinds)
    notes += missing
    for note in notes:
        logger.info("%s", note)
    for row in rows:
        logger.info(_line(row))
    section = {
        "title": "Tokenizer, compared",
        "order": -1,
        "settings": settings,
        "notes": ["Bytes per token, the more the better, and what tokens are made of.", *notes],
        "rows": rows,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    report.write_section(SECTION, section)


# ---- measuring


def _kinds_of_text(max_chars: int) -> dict[str, list[str]]:
    """Texts by kind: training, validation, and the samples above."""
    splits = {
        "training text": list(dataset.iter_texts("train", max_chars=max_chars)),
        "validation text": list(dataset.iter_texts("val", max_chars=max_chars)),
    }
    return splits | {kind: [text] for kind, text in SAMPLES.items()}


def _agreement(tokenizer: RustBPETokenizer, kinds: dict[str, list[str]]) -> list[str]:
    """Whether the other backends give the same ids, in words."""
    texts = [text for own in kinds.values() for text in own]
    ours = tokenizer.encode(texts)
    notes = []
    for name, backend in BACKENDS.items():
        theirs = backend(tokenizer.ranks, tokenizer.pattern).encode(texts)
        differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
        if differing:
            notes.append(f"{name} gives OTHER ids on {differing} of {len(texts)} texts.")
        else:
            notes.append(f"{name} gives equal ids on all {len(texts):,} texts.")
    return notes


def _published() -> tuple[dict[str, Callable[[str], list[int]]], list[str]]:
    """Encoders of published vocabularies that can be had, and a line that names the others."""
    found: dict[str, Callable[[str], list[int]]] = {}
    missing = {}
    for name, file in PUBLISHED.items():
        try:
            found[name] = published_encoding(file).encode_ordinary
        except UserError as error:
            missing[name] = str(error)
    if not missing:
        return found, []
    names, why = " and ".join(missing), list(missing.values())[-1]
    return found, [f"Not compared with the vocabularies of {names}: {why}."]


def _table(
    tokenizer: RustBPETokenizer,
    others: dict[str, Callable[[str], list[int]]],
    kinds: dict[str, list[str]],
) -> list[list[str]]:
    """A row of figures for each kind of text, the head first."""
    head = ["text", "bytes", "bytes/token", "tokens/word", "single bytes"]
    rows = [head + [f"bytes/token {name}" for name in others]]
    sizes = tokenizer.token_bytes()
    for kind, texts in kinds.items():
        ids = [token for text in tokenizer.encode(texts) for token in text]
        num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
        if not ids:
            raise UserError(f"the {kind} is empty; bring some with python -m nanochat.dataset")
        single = sum(sizes[token] == 1 for token in ids) / len(ids)
        row = [kind, f"{num_bytes:,}", f"{num_bytes / len(ids):.2f}", _fertility(texts, len(ids)),
               f"{100 * single:.1f} %"]  # fmt: skip
        for encode in others.values():
            row.append(f"{num_bytes / sum(len(encode(text)) for text in texts):.2f}")
        rows.append(row)
    return rows


def _fertility(texts: list[str], num_tokens: int) -> str:
    """Tokens per word; "-" for scripts that set no spaces between words."""
    num_words = sum(len(text.split()) for text in texts)
    if sum(map(len, texts)) > LONGEST_MEAN_WORD * num_words:
        return "-"
    return f"{num_tokens / num_words:.2f}"


def _line(row: list[str]) -> str:
    return f"{row[0]:16}" + "".join(f"{cell:>18}" for cell in row[1:])


# ---- showing


def show(tokenizer: RustBPETokenizer, text: str) -> None:
    """Print a text cut into tokens, each in colour and followed by its id."""
    shown = Text()
    ids = tokenizer.encode(text)
    for number, token in enumerate(ids):
        shown.append(
            _visible(tokenizer.decode_bytes([token])),
            style=f"black on {COLOURS[number % len(COLOURS)]}",
        )
        shown.append(f"({token}) ", style="dim")
    sizes = tokenizer.token_bytes()
    num_bytes = sum(sizes[token] for token in ids)
    console = Console(soft_wrap=True, highlight=False)
    console.print(shown)
    console.print(
        f"{len(ids)} tokens, {num_bytes} bytes, {num_bytes / max(1, len(ids)):.2f} bytes/token"
    )


def _visible(token: bytes) -> str:
    """A token's text with its spaces visible; bytes that are no text alone as \\xNN."""
    return token.decode("utf-8", errors="backslashreplace").translate(VISIBLE)


if __name__ == "__main__":
    run(main)

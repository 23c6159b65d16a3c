"""Generated strings that tell split patterns and encoders apart."""

import random
from collections.abc import Iterator

PIECES = [
    " ", "  ", "\n", "\r\n", "\r", "\t", "\u00a0", "\u2028", "\u3000", "\u0085", "\x1c", "\v",
    "\f", "a", "B", "the", "é", "e\u0301", "ſ", "\u212a", "ß", "İ", "ǅ", "ʰ", "日", "本", "م",
    "\u0300", "\u200d", "\u200b", "\ufeff", "1", "12", "123", "4567", "٣", "½", "Ⅷ", "²", "'", "’",
    "'s", "'S", "'ſ", "'ll", "'Re", "'VE", "n't", "!", "...", "#", "<|bos|>", "<|user_start|>",
    "<|end", "🙂", "👍🏽", "👨\u200d👩\u200d👧", "🇬🇧", "\ufffd", "\x00", "\U0010ffff", "\ue000",
    "_", "-", "=",
]  # fmt: skip


def generated_strings(number: int, seed: int = 20261124) -> Iterator[str]:
    """Strings of these pieces and of characters of all planes, reproducible by seed.

    One in a hundred contains a lone surrogate.
    """
    rng = random.Random(seed)

    def character() -> str:
        kind = rng.random()
        if kind < 0.3:
            return chr(rng.randrange(0x300))
        return chr(rng.randrange(0xD800) if kind < 0.6 else rng.randrange(0xE000, 0x110000))

    def piece() -> str:
        return rng.choice(PIECES) if rng.random() < 0.7 else character()

    for _ in range(number):
        text = "".join([piece() for _ in range(rng.randrange(1, 20))])
        yield text if rng.random() < 0.99 else text + chr(rng.randrange(0xD800, 0xE000)) + piece()

"""An engine as a model of EleutherAI's lm-evaluation-harness, for `scripts.lm_eval`.

R rows  T time  S scored positions  V vocab
"""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from nanochat.chat import pieces_of
from nanochat.chat_eval import ANSWER_SHARE
from nanochat.engine import Engine, Request, Sampling, TextPiece
from nanochat.errors import UserError
from nanochat.runtime import Runtime, barrier, derive_seed, gather_objects

MAX_NEW_TOKENS = 256  # lm-eval's default


class Instance(Protocol):
    """A request of lm-eval."""

    args: tuple[Any, ...]


class EngineLM:
    """The methods of `lm_eval.api.model.LM` on an engine; `lm_class` adds the base class.

    Texts are tokenized as in training, with <|bos|> before each.
    """

    def __init__(
        self, engine: Engine, runtime: Runtime, batch_size: int = 32, is_chat: bool = False
    ) -> None:
        super().__init__()
        self.engine, self.runtime, self.batch_size = engine, runtime, batch_size
        self.is_chat = is_chat
        self.context = engine.model.config.sequence_len
        self.bos = engine.tokenizer.get_bos_token_id()
        special = sorted(engine.tokenizer.get_special_tokens())
        self._special = re.compile(f"({'|'.join(map(re.escape, special))})")

    # ---- scoring

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """For each (context, continuation) its log-likelihood, and whether greedy gives it."""
        return self._score([self._encode_pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """The log-likelihood of each text after <|bos|>; windows of the context, disjoint."""
        texts = [self._encode(request.args[0]) for request in requests]
        windows = [
            (i, window) for i, tokens in enumerate(texts) for window in self._windows(tokens)
        ]
        totals = [0.0] * len(texts)
        scores = self._score([pair for _, pair in windows])
        for (i, _), (logprob, _) in zip(windows, scores, strict=True):
            totals[i] += logprob
        return totals

    def _encode(self, text: str) -> list[int]:
        tokenizer = self.engine.tokenizer
        if not self.is_chat:
            return tokenizer.encode(text, prepend="<|bos|>")
        # A conversation that apply_chat_template has rendered: odd pieces are special tokens.
        pieces = self._special.split(text)
        tokens = [
            token
            for i, piece in enumerate(pieces)
            for token in ([tokenizer.encode_special(piece)] if i % 2 else tokenizer.encode(piece))
        ]
        return tokens if tokens[:1] == [self.bos] else [self.bos, *tokens]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of its continuation, split where lm-eval splits them."""
        num_before = len(self._encode(context.rstrip()))  # a space belongs to the word after it
        # Both from the whole text: a line break may share a token with the character before it.
        tokens = self._encode(context + continuation)
        return tokens[:num_before], tokens[num_before:]

    def _windows(self, tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """(context, continuation) pairs that predict each token after the first once, as lm-eval.

        Windows share one token, but the last one begins early enough to fill the context.
        """
        done = 1
        while done < len(tokens):
            end = min(len(tokens), done + self.context)
            yield tokens[max(0, end - self.context - 1) : done], tokens[done:end]
            done = end

    @torch.inference_mode()
    def _score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether its tokens are the most likely ones.

        The end is kept of what exceeds the context; an empty continuation has likelihood 1.
        """
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        # Choices of one token share their input, which is computed once.
        users: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
        for i, (context, continuation) in enumerate(pairs):
            tokens = [*context, *continuation][-self.context - 1 :]
            scored = tokens[max(1, len(tokens) - len(continuation)) :]
            if scored:
                users[tuple(tokens[:-1])].append((i, scored))
        order = sorted(users, key=len, reverse=True)  # running out of memory shows at once
        device = self.engine.model.embedding.weight.device
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            longest = [max(len(scored) for _, scored in users[row]) for row in rows]
            at = [
                torch.arange(len(row) - count, len(row))
                for row, count in zip(rows, longest, strict=True)
            ]
            inputs = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # (R, T)
            positions = pad_sequence(at, batch_first=True)  # (R, S)
            logits = self.engine.model(inputs.to(device), logits_at=positions.to(device))
            for row, count, own in zip(rows, longest, logits, strict=True):
                logprobs = own[:count].float().log_softmax(dim=-1)  # (S, V)
                for i, scored in users[row]:
                    targets = torch.tensor(scored, device=device)[:, None]
                    taken = logprobs[count - len(scored) :]
                    total = float(taken.gather(-1, targets).double().sum())
                    scores[i] = total, bool((taken.argmax(dim=-1) == targets[:, 0]).all())
        return scores

    # ---- generation

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The text that continues each context, up to a stop string or the end of the answer."""
        repeats: Counter[str] = Counter()
        rows = []
        for context, settings in (request.args for request in requests):
            repeats[context] += 1  # samples of one prompt draw independently
            rows.append(self.engine.new_row(self._request(context, settings, repeats[context])))
        texts = {id(row): "" for row in rows}
        waiting = deque(rows)
        with closing(self.engine.open(self.batch_size)) as batch:
            while waiting or batch.num_rows:
                num_new = min(len(waiting), self.batch_size - batch.num_rows)
                batch.add([waiting.popleft() for _ in range(num_new)])
                batch.wait_for_tool()
                for row, events in batch.step():
                    pieces = (event.text for event in events if isinstance(event, TextPiece))
                    texts[id(row)] += "".join(pieces)
        return [texts[id(row)] for row in rows]

    def _request(self, context: str, settings: dict[str, Any], repeat: int) -> Request:
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        given = (settings[name] for name in names if settings.get(name) is not None)
        max_tokens = int(next(given, MAX_NEW_TOKENS))
        room = min(max_tokens, max(1, self.context // ANSWER_SHARE))
        stop = settings.get("until") or []
        is_greedy = settings.get("do_sample") is False
        sampling = Sampling(
            temperature=0.0 if is_greedy else float(settings.get("temperature") or 0.0),
            top_k=settings.get("top_k"),
            top_p=float(settings.get("top_p") or 1.0),
            min_p=float(settings.get("min_p") or 0.0),
        )
        return Request(
            self._encode(context)[room - self.context :], max_tokens, sampling,
            seed=derive_seed(context, repeat), stop=[stop] if isinstance(stop, str) else stop,
        )  # fmt: skip

    # ---- conversations

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text with special tokens; without a prompt its last answer is open."""
        pieces = pieces_of(chat_history, self.engine.tokenizer)
        text = "<|bos|>" + "".join(special or words for special, words, _ in pieces)
        if add_generation_prompt:
            return f"{text}<|assistant_start|>"
        return text.removesuffix("<|assistant_end|>")

    @property
    def tokenizer_name(self) -> str:
        return self.engine.tokenizer.content_hash

    # ---- ranks, between which lm-eval splits the items

    @property
    def rank(self) -> int:
        return self.runtime.rank

    @property
    def world_size(self) -> int:
        return self.runtime.world_size

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.tensor(gather_objects(tensor.tolist()))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
        return gather_objects(obj)

    def barrier(self) -> None:
        barrier()


@cache
def lm_class() -> Any:
    """`EngineLM` as a class of lm-eval, registered as "nanochat". Raises UserError without it."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise UserError(f"{error}: lm-eval is not installed; uv sync --extra eval") from None
    return register_model("nanochat")(type("NanochatLM", (EngineLM, LM), {}))

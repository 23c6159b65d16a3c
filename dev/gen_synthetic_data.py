"""Write conversations in which a model says who it is, to give it an identity.

    python -m dev.gen_synthetic_data                              tasks/identity.jsonl, as shipped
    python -m dev.gen_synthetic_data --name=Ada --maker="the night class" --facts=ada.txt \
        --out=ada.jsonl                                           a personality of your own
    python -m dev.gen_synthetic_data --endpoint=http://localhost:8000/v1 --model=NAME \
        --out=varied.jsonl                                        written by another model

Without an endpoint the conversations are put together from the templates below: the same options
give the same file on every machine. With one, any server of the OpenAI protocol writes them (its
key is read from OPENAI_API_KEY); answers that are no conversation are asked for again, and a
second start continues the file.

A file of facts has a line per fact, `question | answer`; {name} and {maker} in it are replaced.
Train with --identity_file=ada.jsonl in scripts.mid_train and scripts.chat_sft: dev/TEACHING.md.
"""

import json
import logging
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from dev.identity_topics import GREETINGS, OPENINGS, TOPICS, Topic
from nanochat.configurator import at_least, parse, run_command
from nanochat.errors import UserError, one_line
from tasks.customjson import CustomJSON

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
SHIPPED = Path(__file__).parents[1] / "tasks" / "identity.jsonl"
MAX_ATTEMPTS = 4  # of a model to write one conversation
PARALLEL_REQUESTS = 8
SHARE_WITH_GREETING, SHARE_OF_FOLLOW_UPS, SHARE_OF_SECOND_TOPICS = 0.2, 0.6, 0.35
STYLES = (
    "a curious child", "a skeptical engineer", "a student", "someone in a hurry", "a poet",
    "someone who mistakes the model for another one", "a teacher", "a friendly neighbor",
    "someone who makes typing errors", "someone who asks in a language other than English",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Write conversations in which a model says who it is."""

    out: str = str(SHIPPED)
    """File to write, one conversation per line."""
    num: Annotated[int, at_least(1)] = 1000
    """Conversations to write."""
    name: str = "nanochat"
    """What the model calls itself."""
    maker: str = "the person who runs me"
    """Who trained it, in its own words."""
    facts: str = ""
    """File with a line per further fact: question | answer."""
    seed: int = 0
    """Seed of the choices."""
    endpoint: str = ""
    """Base URL of a server of the OpenAI protocol that writes the conversations instead."""
    model: str = ""
    """The server's model."""


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.out == str(SHIPPED) and options != Options():
        raise UserError("add --out=FILE: without it the shipped conversations would be replaced")
    topics = [*TOPICS, *facts_of(options.facts)]
    if options.endpoint:
        write_with_model(options, topics)
    else:
        conversations = islice(from_templates(options, topics), options.num)
        lines = [json.dumps({"messages": one}, ensure_ascii=False) for one in conversations]
        Path(options.out).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    task = CustomJSON(options.out)  # what training would refuse is refused now
    logger.info("%s: %d conversations", options.out, len(task))


# ---- from templates


def facts_of(path: str) -> list[Topic]:
    """A topic per line of a file of facts. Raises UserError with the number of a wrong line."""
    topics = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--facts={path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        question, bar, answer = (part.strip() for part in line.partition("|"))
        if not (question and bar and answer):
            raise UserError(f"{path}:{number}: {line.strip()[:60]!r} is not `question | answer`")
        if unknown := set(re.findall(r"\{(.*?)\}", line)) - {"name", "maker"}:
            raise UserError(f"{path}:{number}: {{{min(unknown)}}} is not {{name}} or {{maker}}")
        topics.append(Topic((question.rstrip("?"),), (answer,)))
    return topics


def from_templates(options: Options, topics: list[Topic]) -> Iterator[Messages]:
    """Conversations without end; each topic begins one in so many."""
    index = 0
    while True:
        order = random.Random(f"{options.seed} topics {index // len(topics)}").sample(
            range(len(topics)), len(topics)
        )
        for number in order:
            rng = random.Random(f"{options.seed} {index}")
            turns = conversation(topics[number], topics, rng)
            roles = ("user", "assistant")
            yield [
                {"role": roles[place % 2], "content": filled(text, options)}
                for place, text in enumerate(turns)
            ]
            index += 1


def filled(text: str, options: Options) -> str:
    """A template with the model's name and its maker."""
    capital = options.maker[:1].upper() + options.maker[1:]
    for field, value in (
        ("{name}", options.name), ("{maker}", options.maker), ("{maker_capital}", capital),
    ):  # fmt: skip
        text = text.replace(field, value)
    return text


def conversation(topic: Topic, topics: list[Topic], rng: random.Random) -> list[str]:
    """Texts of the user and the model in turn, about a topic and possibly what follows from it."""
    turns: list[str] = []
    if rng.random() < SHARE_WITH_GREETING:
        hello, reply = rng.choice(GREETINGS)
        turns += [_typed(hello, rng, mark=""), reply]
    opening = "" if turns else rng.choice(OPENINGS)
    turns += [opening + _typed(rng.choice(topic.questions), rng), rng.choice(topic.answers)]
    if topic.follow_ups and rng.random() < SHARE_OF_FOLLOW_UPS:
        turns += rng.choice(topic.follow_ups)
    elif rng.random() < SHARE_OF_SECOND_TOPICS:
        other = rng.choice([one for one in topics if one is not topic])
        turns += [_typed(rng.choice(other.questions), rng), rng.choice(other.answers)]
    return turns


def _typed(question: str, rng: random.Random, mark: str = "?") -> str:
    """A question as people type it: with or without a capital letter and a mark."""
    if rng.random() < 0.7:
        question = question[:1].upper() + question[1:]
    is_question = question.lower().startswith(
        ("who", "what", "how", "do ", "are", "can", "where", "which", "is ", "will", "when", "may")
    )
    return question + (mark if is_question and rng.random() < 0.8 else "")


# ---- by another model


def write_with_model(options: Options, topics: list[Topic]) -> None:
    """Append conversations that a server's model writes, up to `num`."""
    import openai  # with the tools of the tests; only this function needs it

    path = Path(options.out)
    first = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
    try:
        client = openai.OpenAI(base_url=options.endpoint)
    except openai.OpenAIError as error:
        raise UserError(f"{str(error).splitlines()[0]}; set OPENAI_API_KEY (any text if none is"
                        " needed)") from None  # fmt: skip
    with path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        indices = range(first, options.num)
        for messages in pool.map(lambda i: _written(client, options, topics, i), indices):
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            file.flush()  # a second start continues after it


def _written(client: Any, options: Options, topics: list[Topic], index: int) -> Messages:
    """One conversation. Raises UserError when the server fails or does not write one."""
    import openai

    rng = random.Random(f"{options.seed} {index}")
    subjects = rng.sample(topics, min(3, len(topics)))
    facts = "\n".join(
        f"- {one.questions[0]}? {filled(rng.choice(one.answers), options)}" for one in subjects
    )
    prompt = (
        f"Write a natural conversation of one to four turns of {rng.choice(STYLES)} (role user)"
        f" and {options.name} (role assistant), a small language model trained by {options.maker}."
        f" It is truthful, modest and brief. What it knows about itself:\n{facts}\n"
        'Answer with JSON only: [{"role": "user", "content": "..."}, {"role": "assistant",'
        ' "content": "..."}]'
    )
    problem = ""
    for _ in range(MAX_ATTEMPTS):
        try:
            reply = client.chat.completions.create(
                model=options.model, messages=[{"role": "user", "content": prompt}], temperature=1.0
            )
        except openai.OpenAIError as error:  # after the client's own retries
            raise UserError(f"{options.endpoint}: {one_line(error)[:200]}") from None
        text = reply.choices[0].message.content or ""
        try:
            return messages_in(text)
        except ValueError as error:
            problem = str(error)
    raise UserError(
        f"{options.model or options.endpoint} wrote no conversation in {MAX_ATTEMPTS} attempts"
        f" ({problem}); use a larger model"
    )


def messages_in(text: str) -> Messages:
    """The conversation in a model's answer. Raises ValueError if there is none."""
    start = text.find("[")
    if start < 0:
        raise ValueError(f"no JSON in {text[:60]!r}")
    found, _ = json.JSONDecoder().raw_decode(text, start)
    roles = [one.get("role") if isinstance(one, dict) else None for one in found]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"the roles are {roles}")
    if not all(isinstance(one.get("content"), str) and one["content"].strip() for one in found):
        raise ValueError("a message has no text")
    return [{"role": one["role"], "content": one["content"]} for one in found]


if __name__ == "__main__":
    run_command(Options)

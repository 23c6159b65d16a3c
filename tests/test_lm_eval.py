"""The adapter for lm-eval: equal to one sequence at a time, and lm-eval's own tasks on it."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from nanochat import core_eval, paths, report
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.runtime import init_runtime
from scripts import lm_eval as script
from scripts.lm_eval_model import EngineLM, lm_class
from tests.shared_data import EVAL_DATA, needs_eval_data
from tests.small_model import ids, save_small_run, small_model, small_tokenizer

CONTEXT = 64
has_lm_eval = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not has_lm_eval, reason="needs lm-eval: uv sync --extra eval")


@dataclass(frozen=True)
class Request:
    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small_model(sequence_len=CONTEXT, n_layer=1), small_tokenizer())


def model_of(engine: Engine, batch_size: int = 4, is_chat: bool = False) -> EngineLM:
    return EngineLM(engine, init_runtime("cpu"), batch_size, is_chat)


def direct(engine: Engine, tokens: Sequence[int], num_scored: int) -> tuple[float, bool]:
    """Log-likelihood of the last tokens by one full forward pass, and whether greedy has them."""
    with torch.inference_mode():
        logprobs = engine.model(torch.tensor([tokens[:-1]]))[0].log_softmax(dim=-1)
    scored = [(logprobs[at - 1], tokens[at]) for at in range(len(tokens) - num_scored, len(tokens))]
    return (
        sum(float(row[token]) for row, token in scored),
        all(int(row.argmax()) == token for row, token in scored),
    )


# ---- without lm-eval: the model alone


PAIRS = [
    ("The fox eats", " berries."),
    ("The fox eats ", "berries."),  # the space belongs to the continuation
    ("", "The fox"),
    ("Which letter?\n", "A"), ("Which letter?\n", "B"), ("Which letter?\n", "AB"),
    ("one day " * 60, "the fox"),  # longer than the context: its end is kept
    ("fox", " one day" * 40),  # so is the continuation
    ("The fox", ""),
]  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_likelihoods_equal_those_of_a_full_forward_pass(engine: Engine, batch_size: int) -> None:
    scores = model_of(engine, batch_size).loglikelihood([Request(pair) for pair in PAIRS])
    tokenizer = engine.tokenizer
    for (context, continuation), (logprob, is_greedy) in zip(PAIRS, scores, strict=True):
        tokens = tokenizer.encode(context + continuation, prepend="<|bos|>")
        before = tokenizer.encode(context.rstrip(), prepend="<|bos|>")
        num_scored = min(len(tokens) - len(before), CONTEXT)
        expected = direct(engine, tokens[-CONTEXT - 1 :], num_scored) if continuation else (0, True)
        assert logprob == pytest.approx(expected[0], abs=1e-4)
        assert is_greedy == expected[1]


def test_what_greedy_decoding_gives_is_greedy(engine: Engine) -> None:
    tokenizer = engine.tokenizer
    words = ("fox", "bell", "day", "food", "Anna")
    prompts = [tokenizer.encode(f"{word} is", prepend="<|bos|>") for word in words]
    # Tokens and not their text, which may be tokenized in another way.
    found = [completion.tokens for completion in engine.complete(prompts, 3)]
    lm = model_of(engine)
    scores = lm._score([*zip(prompts, found, strict=True)])
    assert all(is_greedy for _, is_greedy in scores)
    for at in range(3):  # another token there
        others = [[token ^ (i == at) for i, token in enumerate(tokens)] for tokens in found]
        scores = lm._score([*zip(prompts, others, strict=True)])
        assert not any(is_greedy for _, is_greedy in scores)


@pytest.mark.parametrize("num_words", [0, 1, 5, 31, 32, 33, 90, 200])
def test_a_rolling_likelihood_predicts_each_token_once_with_disjoint_windows(
    engine: Engine, num_words: int
) -> None:
    text = " fox" * num_words
    tokens = engine.tokenizer.encode(text, prepend="<|bos|>")
    [logprob] = model_of(engine).loglikelihood_rolling([Request((text,))])
    windows = list(model_of(engine)._windows(tokens))
    assert [token for _, predicted in windows for token in predicted] == tokens[1:]
    assert all(context and len(context) + len(p) <= CONTEXT + 1 for context, p in windows)
    expected = sum(direct(engine, [*context, *p], len(p))[0] for context, p in windows)
    assert logprob == pytest.approx(expected, abs=1e-3)
    if 1 < len(tokens) <= CONTEXT + 1:
        assert logprob == pytest.approx(direct(engine, tokens, len(tokens) - 1)[0], abs=1e-3)
    if has_lm_eval:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        theirs = get_rolling_token_windows(tokens[1:], tokens[0], CONTEXT, context_len=1)
        assert [(list(a), list(b)) for a, b in windows] == [*map(make_disjoint_window, theirs)]


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_generated_text_ends_before_stop_strings(engine: Engine, batch_size: int) -> None:
    contexts = ["The fox", "One day", "", "Monday " * 50, "The fox"]
    lm = model_of(engine, batch_size)
    free = lm.generate_until([Request((c, {"until": [], "max_gen_toks": 12})) for c in contexts])
    for context, text in zip(contexts, free, strict=True):
        prompt = engine.tokenizer.encode(context, prepend="<|bos|>")[12 - CONTEXT :]
        [completion] = engine.complete([prompt], 12)
        plain = [t for t in completion.tokens if t < engine.tokenizer.get_vocab_size() - 9]
        if len(plain) == len(completion.tokens):
            assert text == engine.tokenizer.decode(completion.tokens)
    assert free[0] == free[4] and any(free)
    stops = [text[2:4] or "x" for text in free]
    stopped = lm.generate_until([
        Request((context, {"until": stop, "max_gen_toks": 12, "do_sample": False}))
        for context, stop in zip(contexts, stops, strict=True)
    ])  # fmt: skip
    assert stopped == [text.split(stop)[0] for text, stop in zip(free, stops, strict=True)]


def test_samples_of_one_prompt_differ_and_are_reproducible(engine: Engine) -> None:
    settings = {"until": ["\n\n"], "temperature": 1.0, "do_sample": True, "max_gen_toks": 8}
    requests = [Request(("The fox", settings))] * 4
    texts = model_of(engine).generate_until(requests)
    assert len(set(texts)) > 1
    assert model_of(engine, batch_size=1).generate_until(requests) == texts


def test_a_conversation_is_rendered_and_tokenized_as_in_the_chat(engine: Engine) -> None:
    lm = model_of(engine, is_chat=True)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Why?"},
    ]
    text = lm.apply_chat_template(chat)
    assert text == (
        "<|bos|><|user_start|>Be brief.\n\nWho?<|user_end|><|assistant_start|>Me.<|assistant_end|>"
        "<|user_start|>Why?<|user_end|><|assistant_start|>"
    )
    assert lm._encode(text) == ids(text)
    open_answer = lm.apply_chat_template(chat[:3], add_generation_prompt=False)
    assert open_answer.endswith("<|assistant_start|>Me.")
    # Without a conversation the names of special tokens stay text.
    assert ids("<|bos|>")[0] not in model_of(engine)._encode(text)[1:]


def test_without_lm_eval_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "lm_class", lm_class.__wrapped__)  # not the class of another test
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"lm-eval is not installed; uv sync --extra eval"):
        script.main(["--tasks=arc_easy"])


def test_without_tasks_or_with_a_missing_folder_the_option_is_named() -> None:
    with pytest.raises(UserError, match=r"--tasks=NAME,\.\.\. is required"):
        script.main([])
    with pytest.raises(UserError, match="--include_path=/nowhere is not a folder"):
        script.main(["--tasks=a", "--include_path=/nowhere"])


# ---- with lm-eval

CHOICES = [
    {"context": "The fox eats", "choices": [" berries", " acorns", " nuts"], "gold": 0},
    {"context": "One", "choices": [" day", " fox"], "gold": 1},
    {"context": "Where was the bell? In the", "choices": [" shed", " barn", " well"], "gold": 2},
]
TASKS: dict[str, dict[str, Any]] = {
    "our_choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "our_text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{context}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "our_answers": {
        "output_type": "generate_until", "doc_to_text": "{{context}}", "doc_to_target": "x",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


def write_tasks(folder: Path, tasks: dict[str, dict[str, Any]], file: Path) -> None:
    """Local tasks of lm-eval on a file with one JSON value per line."""
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}}
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(
            yaml.dump({"task": name, **task, **data, "test_split": "test"})
        )


@pytest.fixture
def lm_eval_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for tasks; the libraries of lm-eval keep their caches there, too."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@needs_lm_eval
@pytest.mark.slow
def test_lm_eval_measures_local_tasks_of_each_kind_once(lm_eval_home: Path) -> None:
    folder = lm_eval_home
    (folder / "questions.json").write_text("\n".join(map(json.dumps, CHOICES)))
    write_tasks(folder, TASKS, folder / "questions.json")
    engine = Engine(save_small_run("base", n_layer=1), small_tokenizer())
    command = [f"--tasks={','.join(TASKS)}", f"--include_path={folder}", "--device_type=cpu"]
    script.main(command)
    section = report.read_section("lm_eval_base")
    assert section is not None and set(section["results"]) == set(TASKS)
    lm = model_of(engine)
    pairs = [(c["context"], choice) for c in CHOICES for choice in c["choices"]]  # type: ignore[attr-defined]
    expected = iter(lm.loglikelihood([Request(pair) for pair in pairs]))
    lines = (paths.base_dir() / "lm_eval" / "base_our_choices.jsonl").read_text().splitlines()
    right = 0
    for item, line in zip(CHOICES, lines, strict=True):
        scores = [next(expected) for _ in item["choices"]]  # type: ignore[attr-defined]
        found = [(float(a), str(b)) for a, b in json.loads(line)["filtered_resps"]]
        assert found == [(pytest.approx(a, abs=1e-4), str(b)) for a, b in scores]
        logprobs = [logprob for logprob, _ in scores]
        right += logprobs.index(max(logprobs)) == item["gold"]
    assert section["table"]["our_choices, acc (lm-eval)"] == pytest.approx(right / 3)
    assert section["errors"]["our_choices, acc (lm-eval)"] >= 0
    contexts = [Request((item["context"],)) for item in CHOICES]
    total = -sum(lm.loglikelihood_rolling(contexts)) / torch.tensor(2.0).log().item()
    num_bytes = sum(len(str(item["context"]).encode()) for item in CHOICES)
    [[_, items, _, metric, value, _]] = section["results"]["our_text"]
    assert (items, metric, value) == (3, "bits_per_byte", pytest.approx(total / num_bytes))
    results = json.loads((paths.base_dir() / "lm_eval" / "base_our_answers.json").read_text())
    assert results["n-samples"]["our_answers"]["effective"] == 3
    before = report.read_section("lm_eval_base")
    script.main(command)  # already measured
    assert report.read_section("lm_eval_base") == before
    with pytest.raises(UserError, match=r"--tasks=our_choice is not a task.*did you mean our_ch"):
        script.main([*command[1:], "--tasks=our_choice"])


@needs_lm_eval
@needs_eval_data
@pytest.mark.slow
def test_lm_eval_and_our_scorer_give_the_same_accuracy(lm_eval_home: Path) -> None:
    """LM tasks of CORE without examples: both ask for each token of the continuation, greedily."""
    [task] = [task for task in core_eval.CORE_TASKS if task.label == "lambada_openai"]
    count = 100
    items = core_eval.read_items(EVAL_DATA, task, count)
    # A context that holds every item: of longer ones lm-eval keeps one token more than CORE does.
    model, tokenizer = save_small_run("base", n_layer=1, sequence_len=1024), small_tokenizer()
    # The model's own greedy continuation for half of the items: an accuracy that is not 0.
    engine = Engine(model, tokenizer)
    for item in items[::2]:
        prompt = tokenizer.encode(item["context"].strip(), prepend="<|bos|>")
        [completion] = engine.complete([prompt], 2)
        item["continuation"] = tokenizer.decode(completion.tokens).lstrip() or "x"
    (lm_eval_home / "items.json").write_text("\n".join(map(json.dumps, items)))
    write_tasks(
        lm_eval_home,
        {
            "our_lambada": {
                "output_type": "loglikelihood", "doc_to_text": "{{context.strip()}}",
                "doc_to_target": "{{' ' + continuation}}",  # it applies no target_delimiter here
                "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
            }
        },
        lm_eval_home / "items.json",
    )  # fmt: skip
    script.main(["--tasks=our_lambada", f"--include_path={lm_eval_home}", "--device_type=cpu"])
    section = report.read_section("lm_eval_base")
    assert section is not None
    counts = core_eval.evaluate_task(
        task, items, range(count), lambda texts: tokenizer.encode(texts, prepend="<|bos|>"),
        engine.logits_at, limit=1024,
    )  # fmt: skip
    assert counts.num_cropped == 0 and counts.num_right > 5
    assert section["table"]["our_lambada, acc (lm-eval)"] == pytest.approx(counts.accuracy)

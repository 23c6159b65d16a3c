"""A checkpoint as a folder that stock engines load, with equal logits in float32.

Hugging Face `transformers` (5.0 and later) has this model as type `nanochat`. Keys that it does not
find get other defaults and tensors that it does not know are dropped with a remark, so every key is
written and a model that cannot be mapped whole is refused.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import AddedToken
from torch import Tensor

from nanochat import paths
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer

WEIGHTS_FILE = "model.safetensors"

# Our names to those of transformers' `nanochat`.
OUTER_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "unembedding.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp.up.weight": "mlp.fc1.weight",
    "mlp.down.weight": "mlp.fc2.weight",
}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
# Every field of GPTConfig that hf_config carries over; a new field must be mapped or refused.
MAPPED_FIELDS = {
    "sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "rope_base",
    "rms_eps", "softcap", "window_pattern",
}  # fmt: skip

# The same text as chat.render_conversation gives, system texts merged into the first user turn.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- '<|bos|>' -}}
{%- set state = namespace(system='', turn=0) -%}
{%- for message in messages -%}
    {%- if message.role in ['system', 'developer'] and state.turn == 0 -%}
        {%- set state.system = state.system + text_of(message.content) + '\\n\\n' -%}
    {%- elif message.role == 'user' and state.turn % 2 == 0 -%}
        {{- '<|user_start|>' + state.system + text_of(message.content) + '<|user_end|>' -}}
        {%- set state.system = '' -%}
        {%- set state.turn = state.turn + 1 -%}
    {%- elif message.role == 'assistant' and state.turn % 2 == 1 -%}
        {{- '<|assistant_start|>' -}}
        {%- if message.content is string -%}
            {%- generation -%}{{- message.content -}}{%- endgeneration -%}
        {%- else -%}
            {%- for part in message.content -%}
                {%- if part.type == 'text' -%}
                    {%- generation -%}{{- part.text -}}{%- endgeneration -%}
                {%- elif part.type == 'python' -%}
                    {%- generation -%}
                        {{- '<|python_start|>' + part.text + '<|python_end|>' -}}
                    {%- endgeneration -%}
                {%- elif part.type == 'python_output' -%}
                    {{- '<|output_start|>' + part.text + '<|output_end|>' -}}
                {%- else -%}
                    {{- raise_exception('parts are text, python or python_output') -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
        {%- set state.turn = state.turn + 1 -%}
    {%- else -%}
        {{- raise_exception('user and assistant take turns, after at most a system text') -}}
    {%- endif -%}
{%- endfor -%}
{%- if state.turn == 0 -%}
    {{- raise_exception('a conversation needs a user message') -}}
{%- endif -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
"""


def export_hf(model: GPT, tokenizer: RustBPETokenizer, out: Path, dtype: torch.dtype) -> None:
    """Write `out`, whole or not at all.

    Raises UserError when `out` is there already, or when the model has parts that the format has
    no place for.
    """
    if out.exists():
        raise UserError(f"--out={out} is there already; name a new folder, or remove it first")
    named = hf_tensors(model.state_dict())
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in named.items()}
    config = hf_config(model.config, tokenizer, dtype)
    _refuse_wrong_shapes(tensors, model.config)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_files(folder, tensors, config, tokenizer)
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], tokenizer: RustBPETokenizer
) -> None:
    with paths.atomic_file(folder / WEIGHTS_FILE) as file:
        file.write(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 50}
    files = {
        "config.json": _json(config),
        "generation_config.json": _json({**ends, **sampling}),
        "tokenizer.json": hf_tokenizer(tokenizer),
        "tokenizer_config.json": _json(tokenizer_config(config["max_position_embeddings"])),
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    for name, content in files.items():
        paths.write_atomic(folder / name, content)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


# ---- weights


def hf_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under transformers' names. Raises UserError on one that has none there."""
    tensors, unknown = {}, []
    for name, tensor in state.items():
        other = _hf_name(name)
        if other is None:
            unknown.append(name)
        else:
            tensors[other] = tensor.detach().cpu()
    if unknown:
        raise UserError(
            f"the model has {', '.join(sorted(unknown)[:4])}, which the Hugging Face format has no"
            " place for; only the classic recipe can be exported"
        )
    return tensors


def _hf_name(name: str) -> str | None:
    found = BLOCK.fullmatch(name)
    if found is None:
        return OUTER_NAMES.get(name)
    inner = BLOCK_NAMES.get(found[2])
    return None if inner is None else f"model.layers.{found[1]}.{inner}"


def hf_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that transformers expects for this config."""
    wide, kv, inner = config.n_embd, config.n_kv_head * config.head_dim, 4 * config.n_embd
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        OUTER_NAMES.values(), (config.vocab_size, wide)
    )
    for layer in range(config.n_layer):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        shapes |= {
            f"{attention}.q_proj.weight": (wide, wide),
            f"{attention}.k_proj.weight": (kv, wide),
            f"{attention}.v_proj.weight": (kv, wide),
            f"{attention}.o_proj.weight": (wide, wide),
            f"{mlp}.fc1.weight": (inner, wide),
            f"{mlp}.fc2.weight": (wide, inner),
        }
    return shapes


def _refuse_wrong_shapes(tensors: dict[str, Tensor], config: GPTConfig) -> None:
    have = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = hf_shapes(config)
    wrong = [name for name in sorted(have | wanted) if have.get(name) != wanted.get(name)]
    if wrong:
        facts = "; ".join(f"{n}: {have.get(n)} and not {wanted.get(n)}" for n in wrong[:4])
        raise UserError(f"the model cannot be mapped to the Hugging Face format ({facts})")


# ---- config


def hf_config(config: GPTConfig, tokenizer: RustBPETokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """config.json with every key written. Raises UserError on what it has no place for."""
    unknown = config.to_dict().keys() - MAPPED_FIELDS
    if unknown:
        raise UserError(
            f"the model's config has {', '.join(sorted(unknown))}, which the Hugging Face format"
            " has no place for; only the classic recipe can be exported"
        )
    if any(config.windows):
        raise UserError(
            f"the model has attention windows (window_pattern={config.window_pattern}), which the"
            " Hugging Face format has no place for; only --window_pattern=L can be exported"
        )
    if config.vocab_size != tokenizer.get_vocab_size():
        raise UserError(
            f"the model has {config.vocab_size} tokens and the tokenizer"
            f" {tokenizer.get_vocab_size()}; put the tokenizer back that it was trained with"
        )
    bos, end = tokenizer.get_bos_token_id(), tokenizer.encode_special("<|assistant_end|>")
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.sequence_len,
        "hidden_act": "relu2",
        "attention_dropout": 0.0,
        "attention_bias": False,
        "rms_norm_eps": config.rms_eps,
        "initializer_range": 0.02,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": config.softcap,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": end,
        "pad_token_id": end,
        "dtype": str(dtype).removeprefix("torch."),
    }


# ---- tokenizer


def hf_tokenizer(tokenizer: RustBPETokenizer) -> str:
    """tokenizer.json: the same ids, the special tokens with the last ones."""
    backend = tokenizer.huggingface_backend()
    backend.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS]
    )
    for name in SPECIAL_TOKENS:
        assert backend.token_to_id(name) == tokenizer.encode_special(name)
    text: str = backend.to_str(pretty=False)
    return text


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "pad_token": "<|assistant_end|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }

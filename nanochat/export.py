"""Export a model as a folder that Hugging Face transformers loads, with equal logits in float32.

transformers (5.0 and later) has this model as type `nanochat`. A missing config key silently gets
another default and an unknown tensor is dropped with a warning, so every key is written, and a
model that cannot be mapped completely is refused.
"""

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import safetensors.torch
import torch
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from nanochat.errors import UserError, named_failures
from nanochat.gpt import GATE_CHANNELS, GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, STYLE, RustBPETokenizer

MODELING = Path(__file__).with_name("modeling_nanochat.py")
VALUES_MODEL = "NanoChatValuesForCausalLM"
MODEL_CARD = Path(__file__).with_name("model_card.md")
WEIGHTS_FILE = "model.safetensors"
# Renders the same text as chat.render_conversation.
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
# Every field of GPTConfig that hf_config handles: a new one must be mapped or refused.
MAPPED_FIELDS = {
    "sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "rope_base",
    "rms_eps", "softcap", "window_pattern", "value_embeddings", "key_offset_heads", "rotary_share",
}  # fmt: skip
BOS, END = "<|bos|>", "<|assistant_end|>"
# Not the end token, whose positions trainers would mask; this one is never sampled.
PAD = "<|output_end|>"
LICENSES = {  # of models, going by the text that they were trained on
    "primer": "mit", "fineweb-edu": "odc-by", "climbmix": "cc-by-nc-4.0",
}  # fmt: skip
CHAT_USAGE = """    from transformers import pipeline
    chat = pipeline("text-generation", "PATH OF THIS FOLDER"$option)
    chat([{"role": "user", "content": "Hello!"}])
"""
BASE_USAGE = """    from transformers import pipeline
    pipeline("text-generation", "PATH OF THIS FOLDER"$option)("Once upon a time")
"""


@dataclass(frozen=True)
class Usage:
    """What the weights do not tell."""

    name: str = "nanochat"
    is_chat: bool = True  # a base model continues a text until the next one begins
    source: str = ""  # of text
    temperature: float = 0.0
    top_k: int = 50

    @property
    def end(self) -> str:
        """The token at which generation stops."""
        return END if self.is_chat else BOS


CHAT_MODEL = Usage()


def export_hf(
    model: GPT,
    tokenizer: RustBPETokenizer,
    out: Path,
    dtype: torch.dtype,
    usage: Usage = CHAT_MODEL,
) -> None:
    """Write the folder `out` atomically. UserError if it exists or the format has no such model."""
    if out.exists():
        raise UserError(f"--out={out} already exists; name a new folder")
    config = hf_config(model.config, tokenizer, dtype, usage.end)
    tensors = {
        name: tensor.to(dtype).contiguous()
        for name, tensor in hf_tensors(model.state_dict(), model.config).items()
    }
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files: dict[str, str | bytes] = {
        WEIGHTS_FILE: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        "config.json": _json(config),
        "generation_config.json": _json({**ends, **generation_config(model.config, usage)}),
        "tokenizer.json": hf_tokenizer(tokenizer),
        "tokenizer_config.json": _json(tokenizer_config(model.config.sequence_len, usage.end)),
        "README.md": model_card(model.config, usage),
    }
    if needs_code(model.config):
        files[MODELING.name] = MODELING.read_text(encoding="utf-8")
    if usage.is_chat:
        template = CHAT_TEMPLATE.read_text(encoding="utf-8")
        for name in STYLE:
            if getattr(tokenizer, name):
                template = template.replace(f"{name} = false", f"{name} = true")
        files["chat_template.jinja"] = template
    with named_failures(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # In the same parent, so that the rename stays on one file system.
        folder = out.parent / f".{out.name}.{secrets.token_hex(4)}"
        try:
            folder.mkdir()
            for name, content in files.items():
                with (folder / name).open("wb") as file:
                    file.write(content.encode() if isinstance(content, str) else content)
                    file.flush()
                    os.fsync(file.fileno())  # a power loss after the rename must not empty it
            folder.rename(out)
        except FileNotFoundError:  # /proc, or a file system that has gone
            raise UserError(f"{out} cannot be created; use another folder") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


# ---- weights


def hf_tensors(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The tensors under transformers' names. Raises UserError if a name or shape does not fit."""
    layout = hf_layout(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = []
    for name in sorted(shapes.keys() | layout.keys()):
        hf_name, expected = layout.get(name, (name, None))
        if shapes.get(name) != expected:
            wrong.append(f"{hf_name}: {shapes.get(name)}, expected {expected}")
    if wrong:
        raise UserError(
            f"the model cannot be mapped to the Hugging Face format ({'; '.join(wrong[:4])})"
        )
    return {layout[name][0]: tensor.detach().cpu() for name, tensor in state.items()}


def hf_layout(config: GPTConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For each of our tensors, its name in transformers and its shape, (outputs, inputs)."""
    vocab, width, kv_width = config.vocab_size, config.n_embd, config.n_kv_head * config.head_dim
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "embedding.weight": ("model.embed_tokens.weight", (vocab, width)),
        "unembedding.weight": ("lm_head.weight", (vocab, width)),
    }
    block = {
        "attention.query.weight": ("self_attn.q_proj.weight", (width, width)),
        "attention.key.weight": ("self_attn.k_proj.weight", (kv_width, width)),
        "attention.value.weight": ("self_attn.v_proj.weight", (kv_width, width)),
        "attention.output.weight": ("self_attn.o_proj.weight", (width, width)),
        "mlp.up.weight": ("mlp.fc1.weight", (4 * width, width)),
        "mlp.down.weight": ("mlp.fc2.weight", (width, 4 * width)),
    }
    for layer in range(config.n_layer):
        hf_layer = f"model.layers.{layer}"
        for name, (hf_name, shape) in block.items():
            layout[f"blocks.{layer}.{name}"] = (f"{hf_layer}.{hf_name}", shape)
        if config.has_values(layer):
            gate, values = f"blocks.{layer}.attention.gate", f"value_embeddings.{layer}"
            hf_value, shape = f"{hf_layer}.self_attn.v_proj", (config.n_kv_head, GATE_CHANNELS)
            layout[f"{gate}.weight"] = (f"{hf_value}.gate.weight", shape)
            layout[f"{values}.weight"] = (f"{hf_value}.table.weight", (vocab, kv_width))
    return layout


# ---- config


def needs_code(config: GPTConfig) -> bool:
    """Whether the model has parts that transformers' own nanochat models lack."""
    return config.value_embeddings + config.key_offset_heads > 0 or config.rotary_share < 1


def hf_config(
    config: GPTConfig, tokenizer: RustBPETokenizer, dtype: torch.dtype, end: str = END
) -> dict[str, Any]:
    """config.json with every key. Raises UserError on what the format does not support."""
    unknown = config.to_dict().keys() - MAPPED_FIELDS
    if unknown:
        raise UserError(
            f"the model's config has {', '.join(sorted(unknown))}, which the Hugging Face format"
            " does not support"
        )
    if any(config.windows):
        raise UserError(
            f"the model has attention windows (window_pattern={config.window_pattern}), which the"
            " Hugging Face format does not support; only --window_pattern=L can be exported"
        )
    if config.vocab_size != tokenizer.get_vocab_size():
        raise UserError(
            f"the model has {config.vocab_size} tokens and the tokenizer"
            f" {tokenizer.get_vocab_size()}; restore the tokenizer that it was trained with"
        )
    kind: dict[str, Any] = {"architectures": ["NanoChatForCausalLM"], "model_type": "nanochat"}
    if needs_code(config):
        names = {"AutoConfig": "NanoChatValuesConfig", "AutoModelForCausalLM": VALUES_MODEL}
        kind = {
            "architectures": [VALUES_MODEL],
            "model_type": "nanochat_values",
            "auto_map": {auto: f"{MODELING.stem}.{name}" for auto, name in names.items()},
            "value_embeddings": config.value_embeddings,
            "key_offset_heads": config.key_offset_heads,
            "rotary_share": config.rotary_share,
        }
    return {
        **kind,
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
        "initializer_range": 0.02,  # not used: the weights are loaded
        "rope_theta": config.rope_base,  # engines read the one or the other
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": config.softcap,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.get_bos_token_id(),
        "eos_token_id": tokenizer.encode_special(end),
        "pad_token_id": tokenizer.encode_special(PAD),
        "dtype": str(dtype).removeprefix("torch."),
    }


def generation_config(config: GPTConfig, usage: Usage) -> dict[str, Any]:
    """The sampling of `usage`, and the context as the limit: transformers' own is 20 tokens."""
    sampling: dict[str, Any] = {"do_sample": usage.temperature > 0, "top_k": usage.top_k}
    if usage.temperature > 0:  # transformers refuses 0
        sampling["temperature"] = usage.temperature
    return {**sampling, "max_length": config.sequence_len}


# ---- tokenizer


def hf_tokenizer(tokenizer: RustBPETokenizer) -> str:
    """tokenizer.json: the same ids; special tokens have the last ones."""
    backend = tokenizer.huggingface_backend()
    backend.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS]
    )
    for name in SPECIAL_TOKENS:
        assert backend.token_to_id(name) == tokenizer.encode_special(name)
    # Every text of the training data begins with it. Chat templates are applied without it.
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1",
        special_tokens=[(BOS, tokenizer.get_bos_token_id())],
    )  # fmt: skip
    text: str = backend.to_str(pretty=False)
    return text


def tokenizer_config(max_length: int, end: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": end,
        "pad_token": PAD,
        "padding_side": "left",  # generation continues after the last position of a row
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,  # or transformers replaces the post-processor by one that does not
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }


# ---- model card


def model_card(config: GPTConfig, usage: Usage) -> str:
    """README.md of the folder, as the hub shows it."""
    name = LICENSES.get(usage.source, "other")
    of_text = f"The weights are under the license of the text that they come from: {name}."
    unknown = "The weights were trained on the text of a user: name the license that it allows."
    sampled = f"at temperature {usage.temperature:g} from the {usage.top_k} most likely tokens"
    code = Template(CHAT_USAGE if usage.is_chat else BASE_USAGE)
    option, how = "", "where it has the model type `nanochat`"
    if needs_code(config):
        option, how = ", trust_remote_code=True", f"which runs the code in `{MODELING.name}`"
    return Template(MODEL_CARD.read_text(encoding="utf-8")).substitute(
        name=usage.name,
        summary="A chat model." if usage.is_chat else "A base model: it continues a text.",
        usage=code.substitute(option=option),
        how_it_is_loaded=how,
        context=config.sequence_len,
        sampling=f"It samples {sampled}." if usage.temperature else "It answers greedily.",
        license=name,
        license_text=unknown if name == "other" else of_text,
    )

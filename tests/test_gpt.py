from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.kernels import cpu_matmul
from nanochat.kernels.relu_squared import relu_squared
from nanochat.kernels.rms_norm import rms_norm as norm
from tests import small_model
from tests.reference import attention as slow

VOCAB = 67


def config(**changes: object) -> GPTConfig:
    shape = {
        "sequence_len": 24, "vocab_size": VOCAB, "n_layer": 2, "n_head": 4, "n_kv_head": 2,
        "n_embd": 32,
    }  # fmt: skip
    return GPTConfig(**{**shape, **changes})


def random_model(**changes: object) -> GPT:
    """A model without zeros, so that every part affects the output."""
    return small_model.random_model(config(**changes), seed=1)


def tokens(rows: int = 3, length: int = 17, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("pattern", "window"), [("L", None), ("S", 4)])
def test_attention_equals_its_slow_reference(pattern: str, window: int | None) -> None:
    model = random_model(sequence_len=8, window_pattern=pattern)
    layer, shape = model.blocks[0].attention, model.config
    x = torch.randn(1, 8, shape.n_embd, generator=torch.Generator().manual_seed(2))
    seen: list[Tensor] = []
    layer.output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        layer(x, model.rotary.at(torch.arange(8)), None)
        q, k, v = (
            matrix(x)[0].view(8, -1, shape.head_dim).transpose(0, 1)
            for matrix in (layer.query, layer.key, layer.value)
        )
    how = {"base": shape.rope_base, "eps": shape.rms_eps}
    q, k = slow.rotate_and_norm(q, **how), slow.rotate_and_norm(k, **how)
    expected = slow.attend(q, k, v, window).transpose(0, 1).reshape(1, 8, -1)
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_float32_logits_are_bit_equal_to_those_of_transformers(kv_heads: int) -> None:
    model = random_model(n_kv_head=kv_heads)
    peer = peer_with_weights_of(model)
    idx = tokens()
    with torch.no_grad():
        assert torch.equal(model(idx), peer(input_ids=idx).logits)


def peer_with_weights_of(model: GPT) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    shape = model.config
    peer = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.n_embd,
            intermediate_size=4 * shape.n_embd,
            num_hidden_layers=shape.n_layer,
            num_attention_heads=shape.n_head,
            num_key_value_heads=shape.n_kv_head,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.sequence_len,
            hidden_act="relu2",
            rms_norm_eps=shape.rms_eps,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
            final_logit_softcapping=shape.softcap,
            attention_bias=False,
            tie_word_embeddings=False,
        )
    )
    names = {
        "embedding.weight": "model.embed_tokens.weight",
        "unembedding.weight": "lm_head.weight",
    }
    parts = {
        "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
        "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
    }  # fmt: skip
    for layer in range(shape.n_layer):
        for ours, theirs in parts.items():
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    peer.load_state_dict({names[name]: value for name, value in model.state_dict().items()})
    return peer.eval()


@pytest.mark.parametrize("every", [1, 2])
def test_value_embeddings_add_scaled_rows_of_a_table_to_the_values(every: int) -> None:
    model, idx = random_model(value_embeddings=every, n_layer=3), tokens()
    assert [*model.value_embeddings] == {1: ["0", "1", "2"], 2: ["0", "2"]}[every]
    classic = GPT(config(n_layer=3))
    classic.init_weights(0)
    classic.load_state_dict(model.state_dict(), strict=False)

    def add(layer: int, _: Any, arguments: tuple[Tensor], values: Tensor) -> Tensor:
        gate = model.blocks[layer].attention.gate.weight
        table = model.value_embeddings[str(layer)].weight
        found = values.clone()
        for row, position in product(range(idx.size(0)), range(idx.size(1))):
            scales = 3 / (1 + (-gate @ arguments[0][row, position, :12]).exp())
            heads = found[row, position].view(2, 8)
            heads += scales[:, None] * table[idx[row, position]].view(2, 8)
        return found

    for layer in map(int, model.value_embeddings):
        classic.blocks[layer].attention.value.register_forward_hook(partial(add, layer))
    with torch.no_grad():
        torch.testing.assert_close(model(idx), classic(idx), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_offset_key_heads_attend_with_the_key_of_the_token_before(heads: int) -> None:
    model, idx = random_model(key_offset_heads=heads, n_layer=1), tokens()
    attention = model.blocks[0].attention
    x = norm(norm(model.embedding(idx), 1e-6), 1e-6)
    with torch.no_grad():
        q, k, v = attention.project(x, model.rotary.at(torch.arange(idx.size(1))))
        found = attention(x, model.rotary.at(torch.arange(idx.size(1))), None)
        y = torch.zeros_like(q)
        for row, head, t in product(range(idx.size(0)), range(q.size(1)), range(q.size(2))):
            kv_head = head * k.size(1) // q.size(1)
            keys = k[row, kv_head, : t + 1]
            if kv_head < heads:
                keys = torch.cat([torch.zeros_like(keys[:1]), keys[:-1]])
            weights = (keys @ q[row, head, t] / q.size(3) ** 0.5).softmax(0)
            y[row, head, t] = weights @ v[row, kv_head, : t + 1]
        expected = attention.output(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_offset_key_heads_begin_with_the_weights_of_their_queries() -> None:
    model = GPT(config(n_head=4, n_kv_head=2, key_offset_heads=1))
    model.init_weights(0)
    query, key = model.blocks[0].attention.query.weight, model.blocks[0].attention.key.weight
    head_dim = model.config.head_dim
    assert torch.equal(key[:head_dim], query[:head_dim])
    assert not torch.equal(key[head_dim:], query[2 * head_dim : 3 * head_dim])


def test_channels_that_are_not_rotated_are_the_same_at_every_position() -> None:
    whole, part = (GPT(config(rotary_share=share)) for share in (1.0, 0.5))
    for model in (whole, part):
        model.rotary.init_tables()
    half = part.config.head_dim // 2
    assert (part.rotary.cos[:, half // 2 :] == 1).all()
    assert not part.rotary.sin[:, half // 2 :].any()
    assert torch.equal(part.rotary.sin[:, 0], whole.rotary.sin[:, 0])
    for share in (-0.1, 1.5):
        with pytest.raises(UserError, match=f"rotary_share={share} must be from 0 to 1"):
            config(rotary_share=share)
    with pytest.raises(UserError, match="key_offset_heads=9 must be from 0 to 2"):
        config(key_offset_heads=9)


def test_value_embeddings_need_channels_for_their_gates() -> None:
    with pytest.raises(UserError, match=r"value_embeddings=1 .* width of at least 12"):
        config(value_embeddings=1, n_embd=8)
    with pytest.raises(UserError, match="value_embeddings=-1 must be 0"):
        config(value_embeddings=-1)


def test_attention_is_causal() -> None:
    model, idx = random_model(), tokens()
    other = idx.clone()
    other[:, 9:] = (other[:, 9:] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(idx), model(other)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


class ConcatenatingCache:
    """The simplest cache: concatenates, for rows of equal length."""

    def __init__(self) -> None:
        self.length = 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self, num_new: int) -> Tensor:
        return torch.arange(self.length, self.length + num_new).expand(3, -1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in self.kept:
            k, v = (torch.cat(pair, 2) for pair in zip(self.kept[layer], (k, v), strict=True))
        self.kept[layer] = k, v
        T, S = q.size(2), k.size(2)
        mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def test_a_cached_prefill_and_single_steps_give_the_logits_of_one_forward() -> None:
    model, idx, cache = random_model(), tokens(), ConcatenatingCache()
    pieces = []
    with torch.no_grad():
        for first, last in [(0, 8), (8, 11), *((t, t + 1) for t in range(11, 17))]:
            pieces.append(model(idx[:, first:last], kv_cache=cache))
            cache.length = last
        torch.testing.assert_close(torch.cat(pieces, 1), model(idx), atol=2e-5, rtol=1e-5)


def test_logits_at_selects_one_position_of_each_row() -> None:
    model, idx = random_model(), tokens()
    where = torch.tensor([0, 16, 5])
    with torch.no_grad():
        picked = model(idx, logits_at=where)
        whole = model(idx)
    assert picked.shape == (3, 1, VOCAB)
    torch.testing.assert_close(picked[:, 0], whole[torch.arange(3), where], atol=1e-6, rtol=1e-6)


def test_a_text_beyond_the_context_is_rejected_with_both_lengths() -> None:
    with pytest.raises(UserError, match=r"25 tokens.*24"):
        random_model()(tokens(length=25))


# ---- the loss


def test_the_loss_with_targets_is_that_of_the_logits_without() -> None:
    model, idx = random_model(), tokens()
    targets = tokens(seed=1)
    targets[1, 4:] = -1
    with torch.no_grad():
        nll = model(idx, targets)
        expected = F.cross_entropy(
            model(idx).transpose(1, 2), targets, ignore_index=-1, reduction="none"
        )
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, atol=1e-5, rtol=1e-5)
    assert bool((nll[1, 4:] == 0).all())


def test_the_weighted_loss_and_its_gradients_are_those_of_the_losses() -> None:
    fast, slow, idx, targets = random_model(), random_model(), tokens(), tokens(seed=1)
    targets[1, 4:] = -1
    weights = torch.linspace(-1, 2, targets.numel()).view_as(targets)
    loss = fast(idx, targets, weights=weights)
    expected = (slow(idx, targets) * weights).sum()
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    for ours, plain in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, atol=1e-4, rtol=1e-4)


def test_a_batch_without_targets_gives_zero_gradients_and_no_nan() -> None:
    model, idx = random_model(), tokens()
    model(idx, torch.full_like(idx, -1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad == 0).all()), name


def test_the_gradient_of_relu_squared_is_that_of_its_parts() -> None:
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert torch.equal(relu_squared(x), F.relu(x).square())
    assert torch.autograd.gradcheck(relu_squared, (x,))


def test_capped_logits_stay_within_the_cap_in_float32() -> None:
    model = random_model(softcap=2.0).to(torch.float32)
    model.compute_dtype = torch.bfloat16
    with torch.no_grad():
        logits = model(tokens())
    assert logits.dtype == torch.float32
    assert float(logits.abs().max()) <= 2.0
    # In bfloat16 tanh would leave at most 256 values between 1 and 2.
    assert logits.unique().numel() > logits.to(torch.bfloat16).unique().numel()


def test_bfloat16_compute_stays_near_float32_with_float32_gradients() -> None:
    exact, rounded = random_model(), random_model()
    rounded.compute_dtype = torch.bfloat16
    idx, targets = tokens(), tokens(seed=1)
    losses = []
    for model in (exact, rounded):
        loss = model(idx, targets).mean()
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    for ours, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert other.dtype == other.grad.dtype == torch.float32
        assert F.cosine_similarity(ours.grad.flatten(), other.grad.flatten(), dim=0) > 0.95


def test_recomputed_blocks_give_the_same_gradients_and_keep_less() -> None:
    kept = []
    results = []
    for keeps_activations in (True, False):
        model = random_model(window_pattern="S")
        model.keeps_activations = keeps_activations
        num_elements = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal num_elements
            num_elements += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(tokens(), tokens(seed=1), weights=torch.ones(tokens().shape))
        loss.backward()
        kept.append(num_elements)
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert kept[1] < 0.4 * kept[0]
    for ours, plain in zip(*results, strict=True):
        assert torch.equal(ours, plain)


# ---- weights


def test_every_tensor_is_filled_after_meta_and_empty() -> None:
    with torch.device("meta"):
        model = GPT(config())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(torch.nan)
    model.init_weights(5)
    plain = GPT(config())
    plain.init_weights(5)
    poisoned = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    for name, tensor in poisoned.items():
        assert torch.equal(tensor, expected[name]), name  # NaN would be unequal


def test_equal_seeds_give_equal_weights_and_the_global_rng_is_not_used() -> None:
    torch.manual_seed(0)
    first = GPT(config())
    state = torch.get_rng_state()
    first.init_weights(7)
    assert torch.equal(state, torch.get_rng_state())
    second, third = GPT(config()), GPT(config())
    second.init_weights(7)
    third.init_weights(8)
    assert torch.equal(first.embedding.weight, second.embedding.weight)
    assert not torch.equal(first.embedding.weight, third.embedding.weight)


def test_the_initial_loss_is_that_of_a_uniform_guess() -> None:
    model = GPT(config())
    model.init_weights(0)
    with torch.no_grad():
        loss = model(tokens(), tokens(seed=1)).mean()
    assert float(loss) == pytest.approx(torch.tensor(VOCAB).log().item(), abs=0.01)


def test_the_state_holds_weights_only() -> None:
    model = GPT(config())
    assert model.state_dict().keys() == {name for name, _ in model.named_parameters()}


def test_a_few_steps_of_gradient_descent_learn_one_batch() -> None:
    model, idx, targets = random_model(), tokens(), tokens(seed=1)
    losses = []
    for _ in range(40):
        loss = model(idx, targets).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.3 * parameter.grad / parameter.grad.norm().clamp(min=1e-8)
                parameter.grad = None
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_a_compiled_model_gives_the_eager_loss_and_gradients() -> None:
    eager, inner = (random_model(window_pattern="S") for _ in range(2))
    compiled = torch.compile(inner, dynamic=False)
    idx, targets = tokens(), tokens(seed=1)
    targets[0, 3:] = -1
    for model in (eager, compiled):
        model(idx, targets, weights=torch.ones(targets.shape)).backward()
    for ours, other in zip(eager.parameters(), inner.parameters(), strict=True):
        torch.testing.assert_close(other.grad, ours.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("is_amd", [False, True])
def test_a_compiled_training_step_is_one_graph(
    is_amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing the test for oneDNN would break the graph in every layer."""
    monkeypatch.setattr(cpu_matmul, "SMALL", 0)
    monkeypatch.setattr(cpu_matmul, "_is_amd", lambda: is_amd)
    graphs = []

    def count_graphs(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = random_model(n_layer=3, window_pattern="SSL")
    compiled = torch.compile(model, backend=count_graphs, dynamic=False)
    for _ in range(2):
        compiled(tokens(), tokens(seed=1), weights=torch.ones(tokens().shape)).backward()
    assert len(graphs) == 1


# ---- shapes


@pytest.mark.parametrize("depth", range(1, 41))
def test_every_depth_has_legal_heads_and_64_channels_per_layer(depth: int) -> None:
    shape = GPTConfig.from_depth(depth, vocab_size=VOCAB, sequence_len=8)
    assert shape.n_embd == 64 * depth
    assert shape.head_dim * shape.n_head == shape.n_embd
    assert shape.head_dim % 8 == 0
    if depth % 2 == 0:
        assert shape.head_dim == 128


def test_the_head_dim_can_be_chosen() -> None:
    shape = GPTConfig.from_depth(4, vocab_size=VOCAB, sequence_len=8, head_dim=64)
    assert (shape.head_dim, shape.n_head) == (64, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 3}, "n_head=3 must divide n_embd=32"),
        ({"n_head": 32, "n_kv_head": 32}, "even width"),
        ({"n_kv_head": 3}, "n_kv_head=3 must divide n_head=4"),
        ({"vocab_size": 0}, "vocab_size=0 must be 1 or more"),
        ({"window_pattern": "SsL"}, "window_pattern=SsL must be letters L .* and S"),
        ({"window_pattern": ""}, "window_pattern= must be letters L .* and S"),
    ],
)
def test_an_invalid_shape_is_rejected_with_its_value(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)


@pytest.mark.parametrize("depth", [0, -3])
def test_a_depth_below_one_is_rejected(depth: int) -> None:
    with pytest.raises(UserError, match=f"--depth={depth} must be 1 or more"):
        GPTConfig.from_depth(depth, vocab_size=VOCAB, sequence_len=8)


def test_a_config_survives_its_dictionary_and_missing_fields_get_defaults() -> None:
    shape = config(softcap=20.0, rope_base=5000.0, window_pattern="SL")
    saved = shape.to_dict()
    assert GPTConfig.from_dict(saved) == shape
    del saved["softcap"], saved["window_pattern"]
    assert GPTConfig.from_dict(saved) == config(rope_base=5000.0)


def test_a_field_of_another_version_is_rejected_by_name() -> None:
    with pytest.raises(UserError, match="n_experts"):
        GPTConfig.from_dict({**config().to_dict(), "n_experts": 8})


def test_parameters_and_flops_follow_the_formula() -> None:
    model = GPT(config())
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 8 * 32 * 32)
    assert model.num_parameters() == {
        "embedding": VOCAB * 32, "unembedding": VOCAB * 32, "matrices": matrices,
        "total": 2 * VOCAB * 32 + matrices,
    }  # fmt: skip
    assert model.flops_per_token() == 6 * (VOCAB * 32 + matrices) + 12 * 2 * 32 * 24
    with_values = GPT(config(value_embeddings=2))
    assert with_values.num_parameters()["value embeddings"] == VOCAB * 16
    assert with_values.flops_per_token() == model.flops_per_token() + 6 * 2 * 12  # the gate
    windowed = GPT(config(window_pattern="S"))
    assert windowed.flops_per_token() == 6 * (VOCAB * 32 + matrices) + 12 * 32 * (12 + 24)


@pytest.mark.parametrize(
    ("pattern", "layers", "windows"),
    [
        ("L", 3, (None, None, None)),
        ("SSL", 7, (4, 4, None, 4, 4, None, None)),
        ("SSSL", 2, (4, None)),
        ("LS", 4, (None, 4, None, None)),
        ("S", 1, (None,)),
    ],
)
def test_a_pattern_is_repeated_over_the_layers_and_the_last_has_no_window(
    pattern: str, layers: int, windows: tuple[int | None, ...]
) -> None:
    assert config(sequence_len=7, n_layer=layers, window_pattern=pattern).windows == windows

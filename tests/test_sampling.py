from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.inference import sampling
from nanochat.inference.sampling import Sampling, sample_next_token
from tests.reference import sampling as reference

VOCAB = 23


@pytest.fixture(params=[1, 4, 256], autouse=True, scope="module")
def first_candidates(request: pytest.FixtureRequest) -> Iterator[None]:
    """With few candidates draws need the second attempt, with 256 they do not."""
    with mock.patch.object(sampling, "FIRST_CANDIDATES", request.param):
        yield


row_settings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-9, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 0, -1, 1, 2, 7, VOCAB, VOCAB + 5]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)


def rows(count: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed))


def draws(row: Tensor, how: Sampling, count: int) -> list[int]:
    """The tokens drawn by `count` evenly spread uniforms."""
    uniforms = [(i + 0.5) / count for i in range(count)]
    return sample_next_token(row.expand(count, -1), [how] * count, uniforms).tolist()


@settings(max_examples=60)
@given(st.lists(st.tuples(row_settings, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=6))
def test_each_row_of_a_batch_draws_what_the_reference_draws_for_it(
    rows_and_uniforms: list[tuple[Sampling, float]],
) -> None:
    logits = rows(len(rows_and_uniforms))
    how, uniforms = zip(*rows_and_uniforms, strict=True)
    drawn = sample_next_token(logits, how, uniforms).tolist()
    for token, row, one, uniform in zip(drawn, logits, how, uniforms, strict=True):
        near = {reference.draw(row.tolist(), one, uniform + nudge) for nudge in (-1e-5, 0.0, 1e-5)}
        assert token in near


@settings(max_examples=40)
@given(row_settings)
def test_tokens_are_drawn_with_their_probabilities(how: Sampling) -> None:
    row, count = rows(1)[0], 2000
    found = draws(row, how, count)
    expected = reference.distribution(row.tolist(), how)
    assert set(found) <= set(expected)
    for token, share in expected.items():
        assert found.count(token) / count == pytest.approx(share, abs=2 / count)


@pytest.mark.parametrize("top_k", [0, -1, VOCAB, VOCAB + 1, 10**6])
def test_a_top_k_of_zero_or_beyond_the_vocabulary_filters_nothing(top_k: int) -> None:
    row = rows(1)[0]
    unfiltered = draws(row, Sampling(temperature=2.0, top_k=None), 500)
    assert draws(row, Sampling(temperature=2.0, top_k=top_k), 500) == unfiltered
    assert len(set(unfiltered)) > 10


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-5])
def test_temperatures_near_zero_are_greedy(temperature: float) -> None:
    logits = rows(8)
    how = [Sampling(temperature, top_k=5, top_p=0.9, min_p=0.01)] * 8
    assert torch.equal(sample_next_token(logits, how, [0.999] * 8), logits.argmax(dim=-1))


def test_greedy_rows_stay_greedy_beside_sampled_ones() -> None:
    logits = rows(4)
    how = [Sampling(0.0), Sampling(5.0), Sampling(1e-9), Sampling(5.0, top_k=1)]
    drawn = sample_next_token(logits, how, [0.9] * 4)
    assert (drawn == logits.argmax(dim=-1)).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "how",
    [
        Sampling(1.0, top_k=3),
        Sampling(1.0, top_p=0.5),
        Sampling(1.0, min_p=0.3),
        Sampling(1.0),
    ],
)
def test_the_greatest_uniform_draws_no_token_that_is_filtered_out(how: Sampling) -> None:
    greatest = 1 - 2**-53  # random.random() can return it; float32 rounds it to 1
    logits = 30 * rows(50)  # most probabilities are 0 in float32
    drawn = sample_next_token(logits, [how] * 50, [greatest] * 50).tolist()
    for token, row in zip(drawn, logits.tolist(), strict=True):
        allowed = reference.distribution(row, how)
        assert allowed.get(token, 0.0) > 1e-9


def test_infinite_logits_are_never_drawn() -> None:
    row = torch.full((1, VOCAB), -torch.inf)
    row[0, 4] = 12.0
    assert sample_next_token(row, [Sampling(1.0)], [0.5]).tolist() == [4]

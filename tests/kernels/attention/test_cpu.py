"""Attention with dropout on a CPU against float64, and its dropout against that of the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from glyphcrm_kernels import add_norm, choice, dropout_attention
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels._shared.dropout import drop_below
from glyphcrm_kernels.attention import cpu as attention
from glyphcrm_kernels.attention.cpu import _attention_cpu, _attention_cpu_backward, _lay_out
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.kernels.checks import DEVICE, FP32_TOLERANCE, GuardedBuffers, gradients, relative_rms

Lengths = tuple[list[int], list[int]]  # of queries and of keys

HERE = [n for n in cpu_library.LANES if cpu_library.lanes(n) == n]

pytestmark = [
    pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler"),
    pytest.mark.skipif(DEVICE != "cpu", reason="the tensors of the tests are on a GPU"),
]


def make(rows: int, heads: int, queries: int, keys: int, c: int, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return query, key and value as a model's projections give them, and a cotangent of the context."""
    generator = torch.Generator().manual_seed(heads * queries + keys)
    shapes = [(rows, n, heads, c) for n in (queries, keys, keys, queries)]
    query, key, value, cotangent = (place(torch.randn(shape, generator=generator)) for shape in shapes)
    return [*(t.transpose(1, 2).requires_grad_() for t in (query, key, value)), cotangent]


def scaling(query: Tensor) -> float:
    return float(query.shape[3] ** -0.5)


def seeded(query: Tensor, key: Tensor, value: Tensor, p: float, sequences: Lengths | None) -> Tensor:
    asked, read = sequences or (None, None)
    torch.manual_seed(17)
    lengths = {"query_lengths": asked, "key_lengths": read}
    return dropout_attention(query, key, value, scaling=scaling(query), p=p, **lengths, backend="cpu")


def one_hot_like(key: Tensor, read: list[int]) -> Tensor:
    """Return the value with which a sequence's context is its probabilities after dropout."""
    eyes = [torch.eye(keys, key.shape[3]) for keys in read]
    return torch.cat(eyes).expand(key.shape[1], -1, -1).unsqueeze(0)


@pytest.mark.parametrize("lanes", HERE)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.sampled_from([1, 2, 7, 31]), min_size=1, max_size=4),
    read=st.lists(st.sampled_from([2, 3, 8, 21, 48]), min_size=4, max_size=4),
    heads=st.integers(1, 3),
    p=st.sampled_from([0.1, 0.5, 0.9]),
)
@example(asked=[3, 2], read=[520, 1033, 2, 2], heads=1, p=0.2)  # more than is drawn at once
def test_results_are_true_in_a_packed_row(
    buffers: GuardedBuffers,
    monkeypatch: pytest.MonkeyPatch,
    lanes: int,
    asked: list[int],
    read: list[int],
    heads: int,
    p: float,
) -> None:
    monkeypatch.setattr(cpu_library, "lanes", lambda *channels: lanes)
    read = read[: len(asked)]
    *inputs, cotangent = make(1, heads, sum(asked), sum(read), max(read), buffers.place)
    context = seeded(*inputs, p, (asked, read))
    dropped = seeded(*inputs[:2], one_hot_like(inputs[1], read), p, (asked, read)).detach()

    query, key, value = (t.detach().double().requires_grad_() for t in inputs)
    parts = (*(t.split(n, 2) for t, n in ((query, asked), (key, read), (value, read))), dropped.split(asked, 1))
    contexts = []
    for q, k, v, d in zip(*parts, strict=True):
        kept = d.transpose(1, 2)[..., : k.shape[2]] != 0
        probabilities = (scaling(q) * q @ k.transpose(2, 3)).softmax(-1)
        contexts.append(probabilities * kept / (1 - drop_below(p) / 65536) @ v)
    true_context = torch.cat(contexts, 2).transpose(1, 2)
    assert relative_rms(context, true_context) <= FP32_TOLERANCE
    truth = gradients(true_context, [query, key, value], [cotangent.double()])
    # Held against the size of all, as those of query and key may be differences of near equals.
    size = max(gradient.norm() for gradient in truth)
    for name, found, should in zip(
        ("query", "key", "value"), gradients(context, inputs, [cotangent]), truth, strict=True
    ):
        assert (found - should).norm() <= FP32_TOLERANCE * size, name
    buffers.assert_guards_unchanged()


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize(("queries", "keys"), [(16, 37), (2, 9), (1, 600)])
def test_a_batch_is_the_packed_row_of_its_sequences_and_its_dropout_that_of_the_triton_kernels(
    monkeypatch: pytest.MonkeyPatch, at_once: int, queries: int, keys: int
) -> None:
    """However many rows of the batch are worked on at once."""
    rows, heads, p = 5, 2, 0.3
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once * heads * queries * keys)
    *inputs, cotangent = make(rows, heads, queries, keys, keys, lambda t: t)
    assert len(_lay_out(*inputs[:2], None, None)) == -(-rows // at_once)
    context = seeded(*inputs, p, None)
    row = [t.transpose(0, 1).flatten(1, 2).unsqueeze(0) for t in inputs]
    packed = seeded(*row, p, ([queries] * rows, [keys] * rows)).view_as(context)
    assert relative_rms(context, packed) <= FP32_TOLERANCE
    both = [gradients(c, inputs, [cotangent]) for c in (context, packed)]
    for name, batched, alone in zip(("query", "key", "value"), *both, strict=True):
        assert relative_rms(batched, alone) <= FP32_TOLERANCE, name

    dropped = seeded(*inputs[:2], torch.eye(keys).expand(rows, heads, -1, -1), p, None)
    kept = dropped.transpose(1, 2).reshape(-1, keys) != 0
    x = torch.randn(len(kept), keys, requires_grad=True)
    residual, dy = torch.randn(2, len(kept), keys)
    torch.manual_seed(17)
    other = add_norm(x, residual, torch.ones(keys), torch.zeros(keys), p=p, training=True, backend="triton")
    (dx,) = torch.autograd.grad(other, x, dy)
    assert torch.equal(kept, dx != 0)
    assert 0.5 < kept.float().mean() < 0.9


def test_of_one_key_the_value_is_what_comes_out_and_no_gradient_reaches_the_scores() -> None:
    *inputs, cotangent = make(5, 2, 40, 1, 4, lambda t: t)
    context = seeded(*inputs, 0.25, None)
    kept = context / inputs[2].transpose(1, 2)
    assert torch.allclose(kept, kept.round(decimals=0) * (1 / 0.75), atol=1e-6) and kept.count_nonzero(1).all()
    dquery, dkey, dvalue = gradients(context, inputs, [cotangent])
    assert dquery.abs().max() < 1e-6 and dkey.abs().max() < 1e-5
    assert relative_rms(dvalue, (kept * cotangent).sum(1, keepdim=True).transpose(1, 2)) <= FP32_TOLERANCE


def test_the_number_of_threads_changes_no_bit_of_the_c_functions() -> None:
    probabilities, gradient = torch.rand(2, 37, 45)
    seed = torch.tensor([2**40 + 5])
    results = []
    for threads in (1, 2, 3):
        dropped, dscores, again = torch.empty(37, 45), gradient.clone(), torch.empty(37, 45)
        sizes = (cpu_library.lanes(), threads, 37, 45, drop_below(0.4), 11)
        cpu_library.call("attention_dropout", *sizes, seed, probabilities, dropped)
        cpu_library.call("attention_dropout_backward", *sizes, 0.3, seed, probabilities, dscores, again)
        assert torch.equal(dropped, again)
        results.append((dropped, dscores))
    for dropped, dscores in results[1:]:
        assert torch.equal(dropped, results[0][0]) and torch.equal(dscores, results[0][1])


@pytest.mark.parametrize("lengths", [None, ([2, 4], [3, 5])])
def test_the_operators_keep_the_rules_of_pytorch(lengths: Lengths | None) -> None:
    *inputs, cotangent = make(1 if lengths else 3, 2, 6, 8, 4, lambda t: t)
    settings_ = (drop_below(0.4), 0.3, *(lengths or (None, None)))
    seed = torch.tensor([5])
    torch.library.opcheck(_attention_cpu.custom, (*inputs, seed, *settings_))
    context, kept = _attention_cpu.custom(*inputs, seed, *settings_)
    assert context.shape == cotangent.shape
    plain = [t.detach() for t in inputs]
    torch.library.opcheck(_attention_cpu_backward.custom, (cotangent, *plain, seed, kept.detach(), *settings_))


@pytest.mark.parametrize("preserve", [True, False])
def test_checkpointing_draws_the_same_mask_again(preserve: bool) -> None:
    *inputs, cotangent = make(3, 2, 6, 8, 4, lambda t: t)

    def attend(*tensors: Tensor) -> Tensor:
        return dropout_attention(*tensors, scaling=0.5, p=0.4)

    torch.manual_seed(3)
    plain = gradients(attend(*inputs), inputs, [cotangent])
    torch.manual_seed(3)
    context = checkpoint(attend, *inputs, use_reentrant=False, preserve_rng_state=preserve)
    again = gradients(context, inputs, [cotangent])
    assert all(map(torch.equal, plain, again)) is preserve


def test_what_autograd_may_ask_of_it() -> None:
    """A gradient that is one number spread out, inputs that need none, inference mode; no second derivative."""
    *inputs, _ = make(2, 2, 6, 8, 4, lambda t: t)
    context = seeded(*inputs, 0.4, None)
    expected = gradients(context, inputs, [torch.ones(context.shape)])
    again = torch.autograd.grad(seeded(*inputs, 0.4, None).sum(), inputs)
    assert all(map(torch.equal, expected, again))
    query, key, value = inputs
    (alone,) = torch.autograd.grad(seeded(query.detach(), key.detach(), value, 0.4, None).sum(), value)
    assert torch.equal(alone, expected[2])
    with torch.inference_mode():
        assert torch.equal(seeded(*inputs, 0.4, None), context)
    (first,) = torch.autograd.grad(seeded(*inputs, 0.4, None).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), query)


def test_nothing_to_attend() -> None:
    for rows, queries in ((0, 3), (2, 0)):
        query, key, value = (torch.randn(rows, 2, n, 4) for n in (queries, 5, 5))
        assert dropout_attention(query, key, value, scaling=0.5, p=0.1).shape == (rows, queries, 2, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p": 1.0}, "p=1.0 must be in"),
        ({"query_lengths": [3]}, "query_lengths and key_lengths, or neither"),
        ({"key_lengths": [3]}, "query_lengths and key_lengths, or neither"),
        ({"query_lengths": [1, 2], "key_lengths": [3]}, "2 query_lengths and 1 key_lengths; give each sequence one"),
        ({"query_lengths": [1, 2], "key_lengths": [3, 1]}, "lengths of 4 in all do not divide a row of shape"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], message: str) -> None:
    query, key, value, _ = make(1, 2, 3, 3, 4, lambda t: t)
    with pytest.raises(ValueError, match=message):
        dropout_attention(query, key, value, **{"scaling": 0.5, "p": 0.1, **changed})


def test_numbers_beyond_32_bits_are_refused() -> None:
    with pytest.raises(OverflowError, match="take a smaller batch"):
        cpu_library.call("attention_dropout", 4, 1, 1, 1, 0, 2**31, torch.zeros(1), torch.zeros(1), torch.zeros(1))


def takes(query: Tensor, key: Tensor, value: Tensor, p: float = 0.1) -> bool:
    return choice("dropout_attention", query, key, value, scaling=0.5, p=p).implementation == "cpu"


def test_what_it_takes() -> None:
    query, key, value, _ = make(1, 2, 3, 3, 4, lambda t: t)
    assert takes(query, key, value)
    assert not takes(query, key, value, p=0.0)
    assert not takes(*(t.double() for t in (query, key, value)))
    assert not takes(*(t.to("meta") for t in (query, key, value)))
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(query, key, value)
    fits = []
    torch.func.vmap(lambda q: (q, fits.append(takes(q, key, value)))[0])(query[None])
    assert fits == [False]

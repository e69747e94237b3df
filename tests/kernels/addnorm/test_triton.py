"""Add-norm against float64, its dropout, its gradients, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from glyphcrm_kernels import add_norm
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels._shared.launch import intercepted
from glyphcrm_kernels._shared.optional_triton import INTERPRETED
from glyphcrm_kernels.addnorm.tiles import LARGEST_WIDTH
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.kernels.checks import DEVICE, GuardedBuffers, assert_true, gradients

EPS = 1e-12
EVERY = pytest.mark.parametrize("backend", ["triton", "reference", "auto"])  # "auto" is C where the tests are on a CPU

# dtypes of x, residual, weight and bias, skip
DTYPES = {
    "float32": (torch.float32, torch.float32, torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16, torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "autocast": (torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16),
    "wide residual": (torch.bfloat16, torch.float32, torch.float32, torch.bfloat16),
    "wide x": (torch.float32, torch.float16, torch.float16, torch.float32),
}


class Inputs(NamedTuple):
    """The tensors of one call, and the gradient of its result."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor
    skip: Tensor | None
    index: Tensor | None
    dy: Tensor

    @property
    def differentiable(self) -> list[Tensor]:
        return [tensor for tensor in self[:5] if tensor is not None]

    def __call__(self, backend: str, **options: Any) -> Tensor:
        x, residual, weight, bias, skip, index, _ = self
        return add_norm(x, residual, weight, bias, skip=skip, index=index, eps=EPS, backend=backend, **options)

    def results(self, y: Tensor) -> dict[str, Tensor]:
        """Return y and the gradient of every input by name."""
        names = ["dx", "dresidual", "dweight", "dbias", "dskip"]
        return {"y": y, **dict(zip(names, gradients(y, self.differentiable, [self.dy]), strict=False))}

    def truth(self, kept: Tensor | None = None, p: float = 0.0) -> dict[str, Tensor]:
        """Return the results by the formula in float64; `kept` is the mask of a dropout of probability `p`."""
        wide = [tensor.detach().double().requires_grad_() for tensor in self.differentiable]
        z = wide[0] if kept is None else wide[0] * kept / (1 - p)
        z = z + wide[1]
        if self.index is not None:
            z = z + wide[4][self.index.long()]
        centred = z - z.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * wide[2] + wide[3]
        names = ["dx", "dresidual", "dweight", "dbias", "dskip"]
        return {"y": y, **dict(zip(names, gradients(y, wide, [self.dy.double()]), strict=False))}


def make(
    tokens: tuple[int, ...],
    d: int,
    rows: int | None,
    dtypes: str = "float32",
    *,
    seed: int = 0,
    transposed: bool = False,
    index_dtype: torch.dtype = torch.int64,
    place: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Inputs:
    """Make random inputs; `transposed` ones are not contiguous, `place` moves them into guarded buffers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return tensor.mT.contiguous().mT if transposed and len(shape) > 1 else tensor

    def placed(tensor: Tensor, gradient: bool = True) -> Tensor:
        return place(tensor.to(DEVICE).requires_grad_(gradient))

    of_x, of_residual, of_weight, of_skip = DTYPES[dtypes]
    weight = 1 + 0.5 * normal(d, dtype=of_weight)
    weight[0] = 0  # a gain of 0 must not lose anything
    skip = index = None
    if rows is not None:
        skip = placed(normal(rows, d, dtype=of_skip))
        index = placed(torch.randint(0, rows, tokens, generator=generator, dtype=index_dtype), gradient=False)
    return Inputs(
        placed(normal(*tokens, d, dtype=of_x)),
        placed(normal(*tokens, d, dtype=of_residual)),
        placed(weight),
        placed(normal(d, dtype=of_weight)),
        skip,
        index,
        placed(normal(*tokens, d, dtype=torch.promote_types(of_x, of_residual)), gradient=False),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.sampled_from([(0,), (1,), (2, 0), (3, 7), (37,)]),
    d=st.sampled_from([24, 33, 100, 768]),
    rows=st.sampled_from([None, 1, 2, 9]),
    dtypes=st.sampled_from(sorted(DTYPES)),
    transposed=st.booleans(),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    seed=st.integers(0, 2**31),
)
@example(tokens=(3, 200), d=24, rows=1000, dtypes="float32", transposed=False, index_dtype=torch.int64, seed=0)
@example(tokens=(600,), d=24, rows=1, dtypes="bfloat16", transposed=False, index_dtype=torch.int64, seed=0)
@example(tokens=(2,), d=LARGEST_WIDTH, rows=2, dtypes="float32", transposed=False, index_dtype=torch.int64, seed=0)
def test_results_are_true(
    buffers: GuardedBuffers,
    tokens: tuple[int, ...],
    d: int,
    rows: int | None,
    dtypes: str,
    transposed: bool,
    index_dtype: torch.dtype,
    seed: int,
) -> None:
    options = {"seed": seed, "transposed": transposed, "index_dtype": index_dtype, "place": buffers.place}
    inputs = make(tokens, d, rows, dtypes, **options)
    truth = inputs.truth()
    pytorch = inputs.results(inputs("reference"))
    kernels = inputs.results(inputs("triton"))
    for name in truth:
        # With fewer bits PyTorch rounds the sum, which the kernels do not.
        if dtypes == "float32":
            assert_true(f"reference {name}", pytorch[name], truth[name], pytorch[name])
        assert_true(f"triton {name}", kernels[name], truth[name], pytorch[name])
    for name, tensor in zip(["dx", "dresidual", "dweight", "dbias", "dskip"], inputs.differentiable, strict=False):
        assert kernels[name].dtype == tensor.dtype, name


def test_one_column_is_its_own_mean(buffers: GuardedBuffers) -> None:
    """With d = 1 nothing but the bias is left, exactly (PyTorch makes noise of the rest)."""
    inputs = make((3, 7), 1, 2, place=buffers.place)
    found = inputs.results(inputs("triton"))
    assert torch.equal(found["y"], inputs.bias.expand(3, 7, 1))
    assert not any(found[name].any() for name in ("dx", "dresidual", "dweight", "dskip"))
    assert abs(found["dbias"] - inputs.dy.double().sum()) < 1e-6 * inputs.dy.abs().sum()


@pytest.mark.skipif(not INTERPRETED, reason="the kernels take float64 in the interpreter only")
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("rows", [None, 3])
def test_gradcheck(rows: int | None, p: float) -> None:
    inputs = make((2, 2), 5, rows)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs.differentiable]

    def function(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None = None) -> Tensor:
        torch.manual_seed(3)
        options = {"skip": skip, "index": inputs.index, "p": p, "training": True}
        return add_norm(x, residual, weight, bias, backend="triton", **options)

    assert torch.autograd.gradcheck(function, wide)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("rows", [None, 3])
def test_opcheck(rows: int | None, p: float) -> None:
    x, residual, weight, bias, skip, index, dy = make((2, 3), 24, rows, "wide residual")
    seed = torch.tensor([5], device=DEVICE) if p else None
    arguments = (x, residual, weight, bias, skip, index, seed, p, EPS)
    torch.library.opcheck(torch.ops.glyphcrm.add_norm.default, arguments)
    _, statistics = torch.ops.glyphcrm.add_norm(*arguments)
    kept = [None if tensor is None else tensor.detach() for tensor in (x, residual, weight, statistics, skip)]
    torch.library.opcheck(torch.ops.glyphcrm.add_norm_backward.default, (dy, *kept, index, seed, p))
    if rows is not None:
        torch.library.opcheck(torch.ops.glyphcrm.segment_sum.default, (dy, index, rows, torch.bfloat16))


def dropout_mask(tokens: int, d: int, p: float, dtypes: str = "float32") -> Tensor:
    """Return which elements of x the next call keeps."""
    inputs = make((tokens,), d, None, dtypes)
    results = inputs.results(inputs("triton", p=p, training=True))
    assert (results["dresidual"] != 0).all()
    return results["dx"] != 0


@pytest.mark.parametrize("d", [13, 96])
@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("dtypes", ["float32", "bfloat16"])
def test_dropout_has_one_mask_forward_and_backward(
    buffers: GuardedBuffers, d: int, rows: int | None, dtypes: str
) -> None:
    p = 0.25
    inputs = make((40,), d, rows, dtypes, place=buffers.place)
    results = inputs.results(inputs("triton", p=p, training=True))
    kept = results["dx"] != 0
    truth = inputs.truth(kept, p)
    # What PyTorch makes of the same mask in the tested dtype.
    masked = inputs._replace(x=(inputs.x.detach() * kept / (1 - p)).requires_grad_())
    pytorch = masked.results(masked("reference"))
    pytorch["dx"] = pytorch["dx"] * kept / (1 - p)
    for name in truth:
        assert_true(name, results[name], truth[name], pytorch[name])


def test_dropout_mask_is_a_function_of_seed_row_and_column() -> None:
    def seeded(seed: int, tokens: int, dtypes: str) -> Tensor:
        torch.manual_seed(seed)
        return dropout_mask(tokens, 100, 0.5, dtypes)

    mask = seeded(1, 70, "float32")
    assert torch.equal(mask, seeded(1, 70, "float32"))
    assert torch.equal(mask[:3], seeded(1, 3, "float16"))
    assert not torch.equal(mask, seeded(2, 70, "float32"))
    assert not torch.equal(mask, dropout_mask(70, 100, 0.5))  # the next call, another layer


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_rate_and_independence(p: float) -> None:
    torch.manual_seed(0)
    first, second = (dropout_mask(64, 768, p).float() for _ in range(2))
    n = first.numel()
    for mask in (first, second):
        assert abs(mask.mean() - (1 - p)) < 4 * (p * (1 - p) / n) ** 0.5
        assert abs(mask.mean(0) - (1 - p)).max() < 6.5 * (p * (1 - p) / 64) ** 0.5  # no column is special
        assert abs(mask.mean(1) - (1 - p)).max() < 6.5 * (p * (1 - p) / 768) ** 0.5  # no row is special
    first, second = ((mask - (1 - p)) / (p * (1 - p)) ** 0.5 for mask in (first, second))
    pairs = {f"{lag} columns": (first[:, lag:], first[:, :-lag]) for lag in (*range(1, 10), 256, 384)}
    pairs |= {f"{lag} rows": (first[lag:], first[:-lag]) for lag in (1, 2, 32)}
    pairs |= {"end of a row, start of the next": (first[1:, :8], first[:-1, -8:]), "two calls": (first, second)}
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 4.5 / a.numel() ** 0.5, name


def test_rows_that_end_within_eight_columns_share_no_bits() -> None:
    """With d = 13 a row's second group of eight has three columns too many; they are not the next row's."""
    mask = dropout_mask(2000, 13, 0.5)
    agreement = (mask[:-1, 8:13] == mask[1:, :5]).float().mean()
    assert abs(agreement - 0.5) < 0.03


@EVERY
def test_without_training_there_is_no_dropout_and_no_random_number(backend: str) -> None:
    inputs = make((5,), 24, 2)
    state = torch.get_rng_state()
    assert torch.equal(inputs(backend, p=0.5), inputs(backend, p=0.0, training=True))
    assert torch.equal(state, torch.get_rng_state())


def test_dropout_probability_is_rounded_to_65536ths() -> None:
    inputs = make((5,), 24, 2)
    assert torch.equal(inputs("triton", p=1e-6, training=True), inputs("triton"))
    assert inputs("triton", p=1 - 1e-9, training=True).isfinite().all()


@pytest.mark.parametrize("dtypes", ["float32", "bfloat16"])
def test_twice_is_bitwise_the_same(dtypes: str) -> None:
    inputs = make((70,), 100, 5, dtypes)

    def run() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return inputs.results(inputs("triton", p=0.3, training=True))

    first, second = run(), run()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@EVERY
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("rows", [None, 3])
def test_compiled_without_a_graph_break_it_is_the_same(backend: str, rows: int | None, p: float) -> None:
    torch.compiler.reset()
    inputs = make((2, 4), 24, rows)
    compiled = torch.compile(Inputs.__call__, fullgraph=True, backend="aot_eager")
    results = []
    for function in (Inputs.__call__, compiled):
        torch.manual_seed(1)
        results.append(inputs.results(function(inputs, backend, p=p, training=True)))
    for name in results[0]:
        torch.testing.assert_close(results[1][name], results[0][name], rtol=0, atol=0, msg=name)


@EVERY
def test_autocast_does_not_widen_the_result(backend: str) -> None:
    inputs = make((5,), 24, 2, "autocast")
    plain = inputs.results(inputs(backend))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        cast = inputs.results(inputs(backend))
    assert cast["y"].dtype == torch.bfloat16 and cast["dweight"].dtype == torch.float32
    for name in plain:
        assert torch.equal(plain[name], cast[name]), name


@EVERY
def test_checkpointing_draws_the_same_mask_again(backend: str) -> None:
    inputs = make((9,), 24, 2)

    def run(function: Callable[..., Any]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return inputs.results(function())

    plain = run(lambda: inputs(backend, p=0.5, training=True))
    # A GPU's random state is kept only if one of the arguments is on it.
    again = run(
        lambda: checkpoint(lambda x: inputs._replace(x=x)(backend, p=0.5, training=True), inputs.x, use_reentrant=False)
    )
    for name in plain:
        assert torch.equal(plain[name], again[name]), name


def test_gradients_left_in_leaves_share_no_memory() -> None:
    inputs = make((5,), 24, 2)
    inputs("triton").backward(inputs.dy)
    assert len({tensor.grad.untyped_storage().data_ptr() for tensor in inputs.differentiable[:2]}) == 2


def test_a_frozen_skip_costs_no_segment_sum() -> None:
    inputs = make((5,), 24, 2)
    expected = inputs.results(inputs("triton"))["dx"]
    kernels: list[str] = []
    with intercepted(lambda launch: (kernels.append(launch.kernel.__name__), launch.start())):
        y = inputs._replace(skip=inputs.skip.detach())("triton")
        assert torch.equal(gradients(y, [inputs.x], [inputs.dy])[0], expected)
    assert kernels == ["_add_norm_fwd_kernel", "_add_norm_bwd_kernel"]


@EVERY
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "x is torch.int64"),
        ({"x": torch.ones(())}, r"x has shape \(\)"),
        ({"residual": torch.ones(3)}, r"residual has shape \(3,\); x has \(2, 3\)"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\); it must be \(3,\)"),
        ({"bias": torch.ones(1, 3)}, r"bias has shape \(1, 3\)"),
        ({"skip": None}, "skip is missing; skip and index go together"),
        ({"index": None}, "index is missing; skip and index go together"),
        ({"skip": torch.ones(5, 4)}, r"skip has shape \(5, 4\); it must be \(rows, 3\)"),
        ({"index": torch.zeros(3, dtype=torch.int64)}, r"index has shape \(3,\); it must be \(2,\)"),
        ({"index": torch.zeros(2)}, "index is torch.float32; it must be int64 or int32"),
        ({"index": torch.tensor([0, 5])}, r"index holds 5; it must be in \[0, 5\)"),
        ({"index": torch.tensor([0, -1])}, "index holds -1"),
        ({"p": 1.0}, r"p=1.0 must be in \[0, 1\)"),
        ({"p": -0.1}, "p=-0.1"),
        ({"weight": torch.ones(3, device="meta")}, "weight is on meta, but x is on"),
        ({"backend": "cuda"}, "backend='cuda' is none of"),
    ],
)
def test_bad_input_is_named(
    monkeypatch: pytest.MonkeyPatch, backend: str, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("GLYPHCRM_CHECK_INDICES", "1")
    arguments: dict[str, Any] = {
        "x": torch.ones(2, 3),
        "residual": torch.ones(2, 3),
        "weight": torch.ones(3),
        "bias": torch.ones(3),
        "skip": torch.ones(5, 3),
        "index": torch.zeros(2, dtype=torch.int64),
        "backend": backend,
        **changes,
    }
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.device.type != "meta":
            arguments[name] = value.to(DEVICE)
    with pytest.raises(ValueError, match=f"add_norm: {message}"):
        add_norm(**arguments)


def test_rows_too_wide_for_the_kernels() -> None:
    wide = make((1,), LARGEST_WIDTH + 1, None)
    with pytest.raises(ValueError, match=f"x has d={LARGEST_WIDTH + 1}; the Triton kernels take up to {LARGEST_WIDTH}"):
        wide("triton")
    assert torch.equal(wide("auto"), wide("reference"))


if DEVICE == "cpu":

    def test_auto_is_the_reference_without_a_gpu_and_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu_library, "load", lambda: None)
        inputs = make((5,), 24, 2)
        assert torch.equal(inputs("auto"), inputs("reference"))

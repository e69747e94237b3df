"""The model on the Triton kernels against the model on PyTorch: outputs, gradients, and training features."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from glyphcrm_kernels import BACKENDS
from glyphcrm_kernels._shared import cpu_library, gpus
from glyphcrm_kernels._shared.optional_triton import INTERPRETED
from glyphcrm_kernels.registry import OPS
from torch import Tensor
from transformers import AutoModelForPreTraining

from glyphcrm.config_values import KERNEL_BACKENDS
from glyphcrm.configuration import preset
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling import backend as backends
from glyphcrm.modeling.backend import BACKEND_VARIABLE, check_kernel_backend
from tests.classic import VOCABULARY_SIZE
from tests.versions import checkpoint_activations, data_parallel

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two short sequences of two distinct characters, as each takes the interpreter a second; padding, labels."""
    ids = torch.tensor([[2, 7, 2, 7, 2], [7, 2, 7, 0, 0]])
    labels = torch.tensor([[-100, 9, -100, 7, -100], [-100, 9, -100, -100, -100]])
    return {
        "input_ids": ids.to(DEVICE),
        "attention_mask": (ids != 0).long().to(DEVICE),
        "labels": labels.to(DEVICE),
        "next_sentence_label": torch.tensor([0, 1], device=DEVICE),
    }


@pytest.fixture(scope="module")
def plain_passes() -> dict[str, dict[str, Tensor]]:
    """What several tests compare with, computed once: a pass through the kernels takes seconds in the interpreter."""
    return {}


@pytest.fixture
def on(model: GlyphCRMForPreTraining, batch: dict[str, Tensor], plain_passes: dict[str, dict[str, Tensor]]) -> Any:
    """Return loss, hidden states and all gradients of one training pass on a backend."""
    # Away from the initial ones and zeros, so that a forgotten gain or bias shows.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.to(DEVICE)

    def run(backend: str, dtype: torch.dtype | None = None, module: Any = None) -> dict[str, Tensor]:
        plain = dtype is None and module is None and not model.training
        if plain and backend in plain_passes:
            return plain_passes[backend]
        model.config.kernel_backend = backend
        model.zero_grad()
        with torch.autocast(DEVICE, dtype=dtype, enabled=dtype is not None):
            outputs = (model if module is None else module)(**batch, output_hidden_states=True)
        outputs.loss.backward()
        hidden = {f"hidden {i}": h for i, h in enumerate(outputs.hidden_states)}
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results = {"loss": outputs.loss.detach(), **{name: h.detach() for name, h in hidden.items()}, **gradients}
        if plain:
            plain_passes[backend] = results
        return results

    return run


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare by the largest deviation relative to the largest value of each tensor."""
    assert actual.keys() == expected.keys() and len(actual) > 50
    for name, truth in expected.items():
        scale = truth.abs().max().float() + 1e-6
        assert (actual[name] - truth).abs().max() / scale < tolerance, name


def test_kernels_and_reference_agree(model: GlyphCRMForPreTraining, on: Any) -> None:
    """Outputs and all gradients in float32; the state dict is one and the same."""
    names = list(model.state_dict())
    assert_close(on("triton"), on("reference"), 2e-4)
    assert list(model.state_dict()) == names


@pytest.mark.usefixtures("rounded_bfloat16")
def test_autocast(on: Any) -> None:
    """Half precision where PyTorch has it; the stream between the blocks stays in half precision, too."""
    dtype = torch.bfloat16
    low = {backend: on(backend, dtype) for backend in ("triton", "reference")}
    full = on("reference")
    assert low["triton"]["hidden 2"].dtype == low["reference"]["hidden 2"].dtype == dtype
    for name in (
        "loss",
        "hidden 1",
        "hidden 3",
        "glyphcrm.hanglyph.block1.0.weight",
        "glyphcrm.blocks.0.output.weight",
    ):
        truth = full[name].float()
        errors = {b: float((results[name].float() - truth).norm() / truth.norm()) for b, results in low.items()}
        # Rounding decides at a few pixels which way a gradient goes, by chance different ones on each backend.
        times = 4 if "hanglyph" in name else 2
        assert errors["triton"] < times * errors["reference"] + 1e-3, (name, errors)


def test_gradient_checkpointing_draws_the_same_dropout(model: GlyphCRMForPreTraining, on: Any) -> None:
    """The forward pass that is repeated must drop the same elements."""
    model.train()
    model.config._attn_implementation = "eager"
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(3)
        results.append(on("triton"))
    assert_close(results[1], results[0], 1e-5)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_compiled_without_a_graph_break(
    model: GlyphCRMForPreTraining, batch: dict[str, Tensor], on: Any, backend: str
) -> None:
    """`torch.compile(fullgraph=True)`, with characters prepared as the collator does, loses nothing."""
    ids = batch.pop("input_ids")
    batch["glyph_ids"], batch["glyph_index"] = torch.unique(ids, return_inverse=True)
    labels = batch.pop("labels")
    batch["prediction_index"] = (labels.flatten() != -100).nonzero().flatten()
    batch["labels"] = labels
    expected = on(backend)
    with torch.no_grad():  # transformers installs its hooks for hidden states in the first eager call
        model.config.kernel_backend = "reference"
        model(**batch, output_hidden_states=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(on(backend, module=compiled), expected, 1e-4)


def test_data_parallel(model: GlyphCRMForPreTraining, on: Any, tmp_path: Path) -> None:
    """DistributedDataParallel's buckets take the gradients as they come."""
    expected = on("triton", module=model)  # of this very model: another one's first weights may differ by a bit
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model.config.kernel_backend = "triton"
        found = on("triton", module=data_parallel(model))
    finally:
        torch.distributed.destroy_process_group()
    assert_close(found, expected, 1e-6)


def test_the_choice_is_saved_and_the_environment_overrides_it(
    model: GlyphCRMForPreTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: Any
) -> None:
    """A saved "triton" is a wish: on a machine without a GPU the model runs all the same, but does not train."""
    model.config.kernel_backend = "triton"
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.kernel_backend == "triton"
    monkeypatch.setattr(gpus, "INTERPRETED", False)
    ids = torch.tensor([[2, 7, 3]])
    expected = loaded(ids).prediction_logits
    with pytest.raises(UserError, match="move the tensors to a GPU"):
        check_kernel_backend(loaded.config, torch.device("cpu"))
    monkeypatch.setattr(backends, "OVERRIDE", "reference")
    assert (loaded(ids).prediction_logits - expected).abs().max() < 1e-4
    assert backends.kernel_backend(loaded.config, device=torch.device("cpu")) == "reference"


def test_the_environment_is_read_once_and_a_typo_is_an_error_when_the_model_is_imported(
    model: GlyphCRMForPreTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "cpu")
    read = runpy.run_path(str(backends.__file__))  # as a first import does
    monkeypatch.setenv(BACKEND_VARIABLE, "fast")
    assert read["OVERRIDE"] == read["kernel_backend"](model.config) == "cpu"
    with pytest.raises(UserError, match="GLYPHCRM_KERNEL_BACKEND=fast: it must be one of auto, h"):
        runpy.run_path(str(backends.__file__))


@pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")
def test_a_model_can_insist_on_the_c_functions(model: GlyphCRMForPreTraining, on: Any) -> None:
    if DEVICE != "cpu":
        pytest.skip("the tensors of the tests are on a GPU")
    assert_close(on("cpu"), on("auto"), 1e-12)
    model.config.kernel_backend = "cpu"
    with pytest.raises(ValueError, match="the C functions take float32 on a CPU"):
        model.double()(torch.tensor([[2, 7, 3]]))


def test_an_operation_without_the_chosen_implementation_has_a_stand_in(model: GlyphCRMForPreTraining) -> None:
    config = model.config
    expected = {
        "hopper": {"glyph_stem_conv": "hopper", "glyph_conv": "hopper", "add_norm": "triton"},
        "triton": {"glyph_stem_conv": "triton", "glyph_conv": "triton", "add_norm": "triton"},
    }
    for backend, of_ops in expected.items():
        config.kernel_backend = backend
        for op, name in (of_ops | {"dropout_attention": "reference"}).items():
            assert backends.kernel_backend(config, op) == name
    for backend in ("auto", "cpu", "reference"):
        config.kernel_backend = backend
        for op in OPS:
            has_it = backend == "auto" or backend in OPS[op].implementations
            assert backends.kernel_backend(config, op) == (backend if has_it else "reference")


def test_a_model_for_a_gpu_is_built_on_a_cpu_and_trains_on_none(
    atlas: GlyphAtlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its projections are whitened where it is made."""
    for name in ("triton", "hopper"):
        monkeypatch.setattr(gpus, "INTERPRETED", False)
        monkeypatch.setattr(backends, "OVERRIDE", name)
        made = GlyphCRMForPreTraining.from_atlas(preset("nano", vocab_size=VOCABULARY_SIZE), atlas)
        with pytest.raises(UserError, match=r"need a GPU of compute capability|move the tensors to a GPU"):
            check_kernel_backend(made.config, torch.device("cpu"))


def test_a_model_for_hopper_alone_says_what_it_needs(model: GlyphCRMForPreTraining) -> None:
    model.config.kernel_backend = "hopper"
    with pytest.raises(UserError, match="need a GPU of compute capability"):
        check_kernel_backend(model.config, torch.device("cpu"))


def test_backends_have_the_same_names_everywhere() -> None:
    """The configuration does not import the kernels, so it repeats the names."""
    assert KERNEL_BACKENDS == BACKENDS

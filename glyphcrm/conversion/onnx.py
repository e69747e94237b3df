"""A saved model as an ONNX file."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from glyphcrm.checkpoint import load_as_saved
from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically

PACKAGES = ("onnx", "onnxscript")  # what torch.onnx needs beside PyTorch
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
EXAMPLE = (2, 9)  # of batch and length; both stay free
LARGEST = 2**31 - 2**24  # bytes of weights: a file holds 2 GiB with all that is in it


class _ByPosition(nn.Module):
    """A model from its three inputs to the outputs that it has for them, in a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(**dict(zip(INPUTS, inputs, strict=True))).values())


def export_onnx(directory: Path, file: Path) -> tuple[str, ...]:
    """Write the model that is saved in `directory` to `file`, whole or not at all, and return its outputs' names.

    The graph takes `INPUTS` ``(B, L)`` int64, with B of 1 or more and L up to the model's positions, and computes in
    float32 without dropout. States and logits of padding are arbitrary.

    Raises:
        UserError: no saved GlyphCRM or a damaged one, a package of the extra `onnx` is missing, more weights than a
            file holds, or the file cannot be written.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"export to ONNX needs {' and '.join(missing)}: pip install 'glyphcrm[onnx]'")
    settings = {"dtype": torch.float32, "attn_implementation": "sdpa", "glyph_cache": False}
    recorded = dict.fromkeys(("output_hidden_states", "output_attentions"), False)
    model = load_as_saved(directory, **settings, **recorded)[0].eval()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > LARGEST:
        raise UserError(f"{directory}: {size / 2**30:.1f} GiB of weights; an ONNX file holds 2, take a smaller model")

    ids = torch.randint(1, model.config.num_glyphs, EXAMPLE, generator=torch.Generator().manual_seed(0))
    example = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    with torch.no_grad():
        names = tuple(model(**dict(zip(INPUTS, example, strict=True))).keys())
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.max_position_embeddings)}
    with _quiet():
        program = torch.onnx.export(
            _ByPosition(model).eval(),
            example,
            dynamo=True,
            input_names=INPUTS,
            output_names=names,
            dynamic_shapes=((free,) * len(INPUTS),),
            verbose=False,
        )
    assert program is not None
    write_atomically(file, program.model_proto.SerializeToString())
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what PyTorch's exporter says of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

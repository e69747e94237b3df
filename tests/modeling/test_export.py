"""The model as one graph for batches of any shape: exported, which runs without this package, and compiled."""

from __future__ import annotations

import warnings

import pytest
import torch
from glyphcrm_kernels._shared import cpu_library
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.compilers import make_boxed_compiler

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, HanGlyphEmbedding


def batch(atlas: GlyphAtlas, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Return plain ids and a mask; each row is a token shorter than the one before."""
    ids = torch.randint(5, len(atlas), (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.arange(length) < torch.arange(length, length - rows, -1)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def test_an_exported_graph_takes_batches_of_any_shape(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    """From plain ids and a mask, in PyTorch's own operators."""
    sizes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("length", min=2, max=64)}
    example = batch(atlas, 2, 9)
    program = torch.export.export(model, (), example, dynamic_shapes=dict.fromkeys(example, sizes))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators and not any("glyphcrm" in name for name in operators)
    exported = program.module()
    for rows, length in ((2, 9), (3, 20), (1, 5)):
        inputs = batch(atlas, rows, length)
        with torch.no_grad():
            found, expected = exported(**inputs), model(**inputs)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(
            found.prediction_logits[real], expected.prediction_logits[real], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            found.seq_relationship_logits, expected.seq_relationship_logits, atol=1e-5, rtol=1e-5
        )


def test_a_compiled_graph_takes_batches_of_any_shape(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    """In one piece from plain ids, whose distinct characters it finds itself; with the operators of this package."""
    operators: list[set[str]] = []  # of each graph

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        operators.append({str(node.target) for node in graph.graph.nodes if node.op == "call_function"})
        return graph

    def outputs_and_gradients(call: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        found = call(**inputs)
        logits = found.prediction_logits[inputs["attention_mask"].bool()]
        (logits.square().mean() + found.seq_relationship_logits.square().mean()).backward()
        # Copies: a model's parameters keep their gradients.
        return [logits, found.seq_relationship_logits, *(p.grad.clone() for p in model.parameters())]

    backend = aot_autograd(
        fw_compiler=make_boxed_compiler(keep), bw_compiler=make_boxed_compiler(lambda graph, inputs: graph)
    )
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for rows, length in ((2, 9), (3, 20)):
        inputs = batch(atlas, rows, length)
        found, expected = (outputs_and_gradients(call, inputs) for call in (compiled, model))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(operators) == 1
    if cpu_library.load() is not None:
        assert {"glyphcrm.stem_conv_cpu.default", "glyphcrm.fourier_conv.default"} <= operators[0]


def test_a_traced_graph_takes_batches_of_any_shape(
    model: GlyphCRMForPreTraining, atlas: GlyphAtlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `torch.jit.trace`, from plain ids; of more characters than HanGlyph reads at once."""
    monkeypatch.setattr("glyphcrm.modeling.hanglyph.CPU_PIECE", 4)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids, attention_mask).prediction_logits
            return logits

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of every size that is compared, and that it is deprecated
        traced = torch.jit.trace(Logits(), tuple(batch(atlas, 2, 9).values()))
        for rows, length in ((2, 9), (3, 20), (1, 3)):
            inputs = batch(atlas, rows, length)
            real = inputs["attention_mask"].bool()
            found, expected = traced(*inputs.values())[real], model(**inputs).prediction_logits[real]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["exported", "compiled"])
def test_an_embedding_of_pictures_in_a_graph(kind: str, model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    embedding = HanGlyphEmbedding(model.glyphcrm).eval()
    ids = [batch(atlas, rows, length)["input_ids"] for rows, length in ((2, 9), (3, 20))]
    if kind == "exported":
        sizes = {"ids": {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("length", min=2, max=64)}}
        graph = torch.export.export(embedding, (ids[0],), dynamic_shapes=sizes).module()
    else:
        graph = torch.compile(embedding, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for example in ids:
            torch.testing.assert_close(graph(example), embedding(example), atol=1e-5, rtol=1e-5)

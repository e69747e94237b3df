"""The model as a graph that runs without this package."""

from __future__ import annotations

import torch

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining


def test_an_exported_graph_takes_batches_of_any_shape(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    """From plain ids and a mask, in PyTorch's own operators."""

    def batch(rows: int, length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(5, len(atlas), (rows, length), generator=torch.Generator().manual_seed(length))
        mask = torch.arange(length) < torch.arange(length, length - rows, -1)[:, None]
        return {"input_ids": ids * mask, "attention_mask": mask.long()}

    sizes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("length", min=2, max=64)}
    shapes = dict.fromkeys(batch(2, 9), sizes)
    program = torch.export.export(model, (), batch(2, 9), dynamic_shapes=shapes)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators and not any("glyphcrm" in name for name in operators)
    exported = program.module()
    for rows, length in ((2, 9), (3, 20), (1, 5)):
        inputs = batch(rows, length)
        with torch.no_grad():
            found, expected = exported(**inputs), model(**inputs)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(
            found.prediction_logits[real], expected.prediction_logits[real], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            found.seq_relationship_logits, expected.seq_relationship_logits, atol=1e-5, rtol=1e-5
        )

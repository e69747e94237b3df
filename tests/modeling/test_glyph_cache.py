"""The glyph cache: the same outputs, each character once, and nothing kept that has become wrong."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.cli.entry import main
from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import (
    GlyphCRMForMaskedLM,
    GlyphCRMForPreTraining,
    GlyphCRMForSequenceClassification,
    GlyphCRMModel,
)
from glyphcrm.modeling.glyph_vectors import VECTORS_FILE
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import VOCABULARY_SIZE

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 9, 11, 59, 3]])
DISTINCT = [2, 3, 7, 8, 9, 11, 59]


@pytest.fixture
def base(model: GlyphCRMForPreTraining) -> GlyphCRMModel:
    return model.glyphcrm


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the atlas rows that any HanGlyph encodes."""
    from glyphcrm.modeling.hanglyph import HanGlyph

    rows: list[int] = []
    features = HanGlyph.features

    def counting(self: HanGlyph, wanted: Tensor, bitmaps: Tensor) -> tuple[Tensor, Tensor]:
        rows.extend(wanted.tolist())
        return features(self, wanted, bitmaps)

    monkeypatch.setattr(HanGlyph, "features", counting)
    return rows


def states(base: GlyphCRMModel, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return base(ids).last_hidden_state


def anew(base: GlyphCRMModel, ids: Tensor = IDS) -> Tensor:
    """The states without a cache."""
    with torch.enable_grad():
        return base(ids).last_hidden_state.detach()


def test_each_character_is_encoded_once(base: GlyphCRMModel, encoded: list[int]) -> None:
    expected = anew(base)
    encoded.clear()
    assert states(base).sub(expected).abs().max() < 1e-5
    assert sorted(encoded) == DISTINCT
    torch.testing.assert_close(states(base), states(base), rtol=0, atol=0)
    glyph_ids, glyph_index = torch.tensor([[7, 10, 3]]).unique(return_inverse=True)
    with torch.inference_mode():
        found = base(glyph_ids=glyph_ids, glyph_index=glyph_index).last_hidden_state
    assert sorted(encoded) == sorted([*DISTINCT, 10])
    assert found.sub(anew(base, torch.tensor([[7, 10, 3]]))).abs().max() < 1e-5
    with pytest.raises(ValueError, match="token id 9999"):
        states(base, torch.tensor([[5, 9999]]))
    with pytest.raises(ValueError, match="nothing but padding"):
        states(base, torch.tensor([[0, 0]]))


def test_where_nothing_is_kept(base: GlyphCRMModel, encoded: list[int]) -> None:
    def encodes_again() -> bool:
        encoded.clear()
        states(base)
        return sorted(encoded) == DISTINCT

    anew(base)
    assert encodes_again()
    assert not encodes_again()
    encoded.clear()
    anew(base)  # gradients are on
    assert sorted(encoded) == DISTINCT
    base.train()
    assert encodes_again() and encodes_again()
    base.eval().config.glyph_cache = False
    assert encodes_again() and encodes_again()
    base.config.glyph_cache = True
    states(base)
    # An adapter instead of a layer, and a parameter whose memory is elsewhere.
    layer = base.hanglyph.vector
    base.hanglyph.vector = type("Adapted", (nn.Linear,), {})(layer.in_features, layer.out_features)
    assert encodes_again() and encodes_again()
    base.hanglyph.vector = layer
    states(base)
    assert not encodes_again()
    bias = layer.bias.data
    assert layer.bias is not None
    layer.bias.data = torch.empty(0)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight, bias)  # type: ignore[method-assign]
    assert encodes_again() and encodes_again()


def step(optimizer: Callable[..., torch.optim.Optimizer], **settings: Any) -> Callable[[GlyphCRMModel], None]:
    def change(base: GlyphCRMModel) -> None:
        base.hanglyph.skip1.weight.grad = torch.ones_like(base.hanglyph.skip1.weight)
        optimizer(base.parameters(), lr=0.1, **settings).step()
        base.zero_grad()

    return change


def load(assign: bool) -> Callable[[GlyphCRMModel], None]:
    def change(base: GlyphCRMModel) -> None:
        weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        weights["hanglyph.vector.bias"] += 0.5
        base.load_state_dict(weights, assign=assign)

    return change


def in_place_in_inference_mode(base: GlyphCRMModel) -> None:
    with torch.inference_mode():
        base.hanglyph.stem.weight.mul_(-1)


def through_data(base: GlyphCRMModel) -> None:
    base.hanglyph.stem.weight.data.mul_(-1)
    base.clear_glyph_cache()


def flipped_bits(base: GlyphCRMModel) -> None:
    base.glyph_table.bitmaps[7:10].bitwise_not_()


def rounded(base: GlyphCRMModel) -> None:
    """Memory that is freed and given out again must not be taken for the old weights."""
    with torch.no_grad():
        base.hanglyph.vector.weight.mul_(1e-3)
    states(base)
    for _ in range(8):
        base.hanglyph.half().float()


def training(base: GlyphCRMModel) -> None:
    """An optimiser that is none of PyTorch's, and works on .data."""
    base.train()
    base.hanglyph.stem.weight.data.mul_(-1)
    base.eval()


CHANGES = {
    "sgd": step(torch.optim.SGD),
    "sgd, foreach": step(torch.optim.SGD, foreach=True),
    "sgd, fused": step(torch.optim.SGD, fused=True),
    "adamw, one by one": step(torch.optim.AdamW, foreach=False),
    "adamw, foreach": step(torch.optim.AdamW, foreach=True),
    "adamw, fused": step(torch.optim.AdamW, fused=True),
    "load_state_dict": load(assign=False),
    "load_state_dict, assign": load(assign=True),
    "in place in inference mode": in_place_in_inference_mode,
    "through .data, with clear_glyph_cache": through_data,
    "bitmaps": flipped_bits,
    "to float16 and back": rounded,
    "training mode": training,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_weights_empty_it(change: Callable[[GlyphCRMModel], None], base: GlyphCRMModel) -> None:
    """Compared with a copy of the model, which has no cache."""
    before = states(base)
    change(base)
    after = states(base)
    assert after.sub(before).abs().max() > 1e-4
    assert after.sub(anew(base)).abs().max() < 1e-5
    assert states(copy.deepcopy(base)).sub(after).abs().max() < 1e-5


def test_another_atlas_empties_it(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    base = model.glyphcrm
    before = states(base)
    bitmaps = atlas.bitmaps.copy()
    bitmaps[7] = ~bitmaps[7]
    for _ in range(3):  # one in the memory of another
        model.set_atlas(atlas)
        model.set_atlas(GlyphAtlas(atlas.tokens, bitmaps, atlas.fonts, atlas.sources))
    after = states(base)
    assert after.sub(before).abs().max() > 1e-4 and after.sub(anew(base)).abs().max() < 1e-5


def test_another_type_or_device_empties_it(base: GlyphCRMModel, encoded: list[int]) -> None:
    single = states(base)
    base.double()
    assert states(base).dtype == torch.float64 and states(base).sub(anew(base)).abs().max() < 1e-12
    base.float()
    encoded.clear()
    states(base)
    assert sorted(encoded) == DISTINCT
    base.to("cpu")  # what any move comes down to
    states(base)
    assert sorted(encoded) == sorted(2 * DISTINCT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = states(base)
        torch.testing.assert_close(half, anew(base), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.float16):
        assert states(base).dtype == torch.float16
    assert half.dtype == torch.bfloat16 and states(base).dtype == torch.float32
    assert states(base).sub(single).abs().max() < 1e-5


def test_another_optimizer_does_not_empty_it(base: GlyphCRMModel, encoded: list[int]) -> None:
    """A head that is trained on the states of a frozen model."""
    states(base)
    encoded.clear()
    for others in ([nn.Parameter(torch.ones(3))], list(base.blocks.parameters())):
        for parameter in others:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(others, fused=True).step()
    states(base)
    assert not encoded


def test_inference_tensors(atlas: GlyphAtlas, encoded: list[int]) -> None:
    """A model made in inference mode, and a table filled there, can be used and filled outside of it."""
    with torch.inference_mode():
        base = GlyphCRMModel.from_atlas(preset("nano", vocab_size=VOCABULARY_SIZE), atlas).eval()
        encoded.clear()
        first = states(base, IDS[:1])
    assert states(base)[:1].sub(first).abs().max() < 1e-5
    with torch.inference_mode():
        base(IDS)
        base(torch.tensor([[12, 13]]))
    assert sorted(encoded) == sorted([*DISTINCT, 12, 13])


def test_two_threads(base: GlyphCRMModel, encoded: list[int]) -> None:
    """Both fill the table at once; each character is still encoded once, and all states are right."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(1, len(base.glyph_table.bitmaps), (4, 6), generator=generator) for _ in range(12)]
    expected = [anew(base, batch) for batch in batches]
    encoded.clear()
    start, wrong = threading.Barrier(4), []

    def read(order: list[int]) -> None:
        start.wait()
        for i in order:
            difference = states(base, batches[i]).sub(expected[i]).abs().max()
            if not difference < 1e-5:
                wrong.append((i, difference))

    orders = [list(range(12)), list(range(11, -1, -1)), list(range(12)), list(range(6, 12))]
    threads = [threading.Thread(target=read, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(encoded) == sorted(torch.stack(batches).unique().tolist())


def test_a_complete_table_is_not_waited_for(base: GlyphCRMModel) -> None:
    """Nothing that a GPU's host would wait for."""
    rows = torch.arange(len(base.glyph_table.bitmaps))
    operations: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            operations.append(str(function))
            return function(*args, **(kwargs or {}))

    def ask() -> None:
        with Recorder():
            base.glyph_cache.vectors(base.hanglyph, base.glyph_table.bitmaps, rows)

    ask()
    assert any("_local_scalar_dense" in name or "is_nonzero" in name for name in operations)
    operations.clear()
    ask()
    assert operations == []


def test_copies_and_files_are_as_before(base: GlyphCRMModel, model: GlyphCRMForPreTraining, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "before")
    names = list(model.state_dict())
    states(base)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / path.name).read_bytes() == path.read_bytes()
    for again in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert again.glyph_cache is not base.glyph_cache
        torch.testing.assert_close(states(again), states(base))


# The file ------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(directory: Path) -> Path:
    """With a vectors file."""
    assert main(["atlas", "encode", "--model", str(directory)]) == 0
    return directory


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("model_class", [GlyphCRMModel, GlyphCRMForMaskedLM, GlyphCRMForSequenceClassification])
def test_a_file_replaces_hanglyph(
    dtype: str,
    model_class: Any,
    base: GlyphCRMModel,
    directory: Path,
    encoded: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["atlas", "encode", "--model", str(directory), "--dtype", dtype]) == 0
    rows = len(base.glyph_table.bitmaps)
    printed = capsys.readouterr()
    assert f"{VECTORS_FILE}: {rows} rows, {dtype}, " in printed.out and f"{rows}/{rows}" in printed.err
    assert {tensor.dtype for tensor in load_file(directory / VECTORS_FILE).values()} == {getattr(torch, dtype)}
    expected = anew(base)
    encoded.clear()
    with warnings.catch_warnings(action="error"):
        loaded = model_class.from_pretrained(directory)
        found = states(loaded.glyph_model)
        moved = states(loaded.to("cpu").glyph_model)
        loaded.train()
        again = states(loaded.eval().glyph_model)
    assert not encoded
    for values in (found, moved, again):
        assert values.dtype == torch.float32
        assert values.sub(expected).abs().max() < (1e-5 if dtype == "float32" else 5e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert states(loaded.glyph_model).dtype == torch.bfloat16
    assert not encoded
    # What was learnt since is not in the file.
    loaded.glyph_model.hanglyph.vector.weight.grad = torch.ones_like(loaded.glyph_model.hanglyph.vector.weight)
    torch.optim.AdamW(loaded.parameters(), lr=0.01, fused=True).step()
    loaded.zero_grad()
    assert states(loaded.glyph_model).sub(anew(loaded.glyph_model)).abs().max() < 1e-5
    assert encoded


def test_the_cache_can_be_turned_off(directory: Path, encoded: list[int]) -> None:
    encoded.clear()
    loaded = GlyphCRMModel.from_pretrained(directory, glyph_cache=False)
    states(loaded)
    assert sorted(encoded) == DISTINCT


def stale(path: Path) -> None:
    weights = load_file(path.parent / "model.safetensors")
    weights["glyphcrm.hanglyph.vector.bias"][0] += 1
    save_file(weights, path.parent / "model.safetensors", metadata={"format": "pt"})


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rewritten(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return damage


def shorter(tensors: dict[str, Tensor]) -> None:
    tensors.update({name: tensor[:-1].contiguous() for name, tensor in tensors.items()})


def one_narrower(tensors: dict[str, Tensor]) -> None:
    tensors["skip2"] = tensors["skip2"][:, 1:].contiguous()


def of_integers(tensors: dict[str, Tensor]) -> None:
    tensors.update({name: tensor.long() for name, tensor in tensors.items()})


DAMAGES = {
    "stale": (stale, "other weights or pictures"),
    "truncated": (truncated, "truncated or damaged"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or damaged"),
    "pickle": (lambda path: torch.save({"vector": torch.ones(3)}, path), "truncated or damaged"),
    "rows": (rewritten(shorter), r"shape \(\d+, 32\), not \(\d+, 32\)"),
    "width": (rewritten(one_narrower), "expected three times"),
    "integers": (rewritten(of_integers), "expected three times"),
    "missing": (rewritten(lambda tensors: tensors.pop("skip1")), "truncated or damaged"),
    "no digest": (rewritten(lambda _: None), "other weights or pictures"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_that_does_not_fit_is_ignored(
    damage: Callable[[Path], None], message: str, directory: Path, encoded: list[int]
) -> None:
    """With one warning that says which file and what to do; and encoding again makes it good."""
    damage(directory / VECTORS_FILE)
    with pytest.warns(UserWarning, match=f"{VECTORS_FILE} is not used: .*{message}.*atlas encode") as seen:
        loaded = GlyphCRMModel.from_pretrained(directory)
    assert len(seen) == 1
    encoded.clear()
    assert states(loaded).sub(anew(loaded)).abs().max() < 1e-5
    assert sorted(encoded) == sorted(2 * DISTINCT)
    with warnings.catch_warnings(action="error"):
        assert main(["atlas", "encode", "--model", str(directory)]) == 0
        loaded = GlyphCRMModel.from_pretrained(directory)
    encoded.clear()
    states(loaded)
    assert not encoded


def test_one_digest_for_weights_stored_in_half_precision(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path, encoded: list[int]
) -> None:
    """Loaded as they are stored or in float32, they are the same weights; rounded further, they are others."""
    save_checkpoint(model.half(), tokenizer, tmp_path / "half")
    assert main(["atlas", "encode", "--model", str(tmp_path / "half")]) == 0
    encoded.clear()
    for dtype in (torch.float16, torch.float32):
        loaded = GlyphCRMModel.from_pretrained(tmp_path / "half", dtype=dtype)
        assert states(loaded).dtype == dtype
    assert not encoded
    with pytest.warns(UserWarning, match="rounded to a smaller dtype"):
        GlyphCRMModel.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)


def test_encoding_needs_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atlas", "encode", "--model", str(tmp_path)]) == 2
    assert "give a directory with a saved GlyphCRM" in capsys.readouterr().err

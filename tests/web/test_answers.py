"""What the page shows, without a browser: drawings, neighbours, heat maps, attacks, and what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from glyphcrm.answers import Answer, load_answerer
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForMaskedLM
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.web import rendering
from glyphcrm.web.characters import see_drawn, see_typed
from glyphcrm.web.drawing import picture_of
from glyphcrm.web.heat import STRIDE, WINDOW, heat_map
from glyphcrm.web.models import PRETRAINED, Models, bounded, load_models
from glyphcrm.web.substitution import SOURCES, attack
from tests.classic import TEXT

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "glyphcrm-tiny"
CROSS = [[[0.4, 0.5], [0.6, 0.5]], [[0.5, 0.4], [0.5, 0.6]]]


def test_a_drawing_becomes_a_printed_characters_picture() -> None:
    picture = picture_of(json.dumps(CROSS))
    assert picture.shape == (48, 48) and set(np.unique(picture)) == {0, 1}
    (tops, lefts) = np.nonzero(picture)
    for places in (tops, lefts):  # centred, as large as print
        assert places.min() + places.max() in (46, 47, 48) and 42 <= np.ptp(places) + 1 <= 44
    assert (picture == picture.T).all()
    assert (picture == picture[::-1]).mean() > 0.96  # three pixels have no middle among 48
    assert 2 <= picture[10].sum() <= 4  # the pen's width
    twice_as_large = (np.array(CROSS) - 0.5) * 2 + 0.5
    assert (picture_of(json.dumps(twice_as_large.tolist())) == picture).mean() > 0.99
    dot = picture_of("[[[0.1, 0.9]]]")
    assert 4 <= dot.sum() <= 12 and dot[22:26, 22:26].any()


@pytest.mark.parametrize(
    ("drawing", "complaint"),
    [
        (None, "is blank"),
        ("", "is blank"),
        ("[]", "is blank"),
        ("[[], []]", "is blank"),
        ("no JSON", "cannot be read"),
        ("[[[0.1]]]", "cannot be read"),
        ('[[["a", 1]]]', "cannot be read"),
        ("[[[NaN, 1]]]", "cannot be read"),
        (f"[[[1{'0' * 400}, 1]]]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (json.dumps([[[0, 1]] * 30_000]), "more than 20,000 points"),
        ("[[" + "[0.1234567,0.1234567]," * 100_000 + "[0,0]]]", "too many points"),
    ],
)
def test_drawings_that_are_none(drawing: str | None, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        picture_of(drawing)


def test_a_drawing_is_seen_as_its_picture_would_be(models: Models, atlas: GlyphAtlas) -> None:
    """A row added for the picture has the same neighbours and readings."""
    sentence = "天地▢黄宇宙"
    seen = see_drawn(models, json.dumps(CROSS), sentence)
    bitmap = np.packbits(seen.picture.reshape(1, -1), axis=-1)
    grown = GlyphCRMForMaskedLM.from_pretrained(models.filler.tokenizer.name_or_path).eval()
    extended = models.atlas.append(("☃",), bitmap, "drawn")
    grown.set_atlas(extended)
    vectors = grown.glyphcrm.hanglyph(torch.arange(len(extended)), torch.tensor(extended.bitmaps)).vector.detach()
    centred = vectors - vectors[:-1].mean(0)
    cosines = torch.cosine_similarity(centred[:-1], centred[-1:])
    order = [i for i in cosines.argsort(descending=True).tolist() if len(extended.tokens[i]) == 1][:10]
    assert [char for char, _ in seen.neighbours] == [extended.tokens[i] for i in order]
    assert [cosine for _, cosine in seen.neighbours] == pytest.approx(cosines[order].tolist(), abs=1e-4)
    for shown, token in ((seen.read, "☃"), (seen.hidden, "[MASK]")):
        rows = [extended.rows[t] for t in ("[CLS]", "天", "地", token, "黄", "宇", "宙", "[SEP]")]
        shares = grown(torch.tensor([rows])).logits[0, 3].softmax(-1)[len(SPECIAL_TOKENS) :]
        assert [share for _, share in shown] == pytest.approx(shares.topk(5).values.tolist(), abs=1e-5)
    assert seen.read != seen.hidden


def test_a_typed_character_is_no_neighbour_of_itself(models: Models) -> None:
    seen = see_typed(models, " 天", "")
    assert len(seen.neighbours) == 10 and "天" not in dict(seen.neighbours) and seen.read == ()
    assert (seen.picture == models.atlas.pictures(models.atlas.rows["天"])).all()


def test_erasing_is_what_a_model_of_an_altered_atlas_says(models: Models) -> None:
    """Read by token ids from an atlas in which a window of the picture is blank, one window at a time."""
    found = heat_map(models.filler, "天地▢黄", "erasing")
    assert found.tokens[2].token == "[MASK]" and not found.tokens[2].heat.any()
    model = GlyphCRMForMaskedLM.from_pretrained(models.filler.tokenizer.name_or_path).eval()
    ids = models.filler.tokenizer("天地[MASK]黄", return_tensors="pt")["input_ids"]

    def log_share() -> float:
        with torch.no_grad():
            shares = model(ids).logits[0, 3].double().log_softmax(-1)
        return float(shares[models.atlas.rows[found.answer]])

    whole = log_share()
    assert found.share == pytest.approx(np.exp(whole), rel=1e-4)
    row = models.atlas.rows["黄"]
    picture = models.atlas.pictures(row)
    expected, windows = np.zeros((48, 48)), np.zeros((48, 48))
    for top in range(0, 48 - WINDOW + 1, STRIDE):
        for left in range(0, 48 - WINDOW + 1, STRIDE):
            window = np.zeros((48, 48), bool)
            window[top : top + WINDOW, left : left + WINDOW] = True
            windows += window
            if ink := (picture[window] != 0).sum():
                erased = np.where(window, 0, picture)
                bitmaps = models.atlas.bitmaps.copy()
                bitmaps[row] = np.packbits(erased)
                model.glyphcrm.glyph_table.bitmaps = torch.tensor(bitmaps)
                expected += window * (whole - log_share()) / ink
    expected *= picture / windows
    heat = found.tokens[3].heat
    assert np.abs(expected).max() > 1e-5
    np.testing.assert_allclose(heat, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "text"), [(PRETRAINED, "天地▢黄天"), ("judge", "天地玄黄天")])
def test_the_gradient_is_the_change_when_ink_grows(models: Models, name: str, text: str) -> None:
    """Scaling the ink of one token by 1 + e changes the score by e times the sum of its heat."""
    answerer = models.all[name]
    found = heat_map(answerer, text, "gradient")
    model, place = answerer.model, 5  # the second 天, which has a heat of its own
    ids = answerer.tokenizer(text.replace("▢", "[MASK]"), return_tensors="pt")["input_ids"]
    rows = torch.arange(ids.shape[1])

    def log_share(scale: float) -> float:
        def scaled(_: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            channels = inputs[0].clone()
            channels[place, 0] *= scale
            return (channels,)

        handle = model.glyph_model.hanglyph.stem.register_forward_pre_hook(scaled)
        with torch.no_grad():
            vectors = model.glyph_model.hanglyph(rows, model.glyph_model.glyph_table.bitmaps[ids[0]])
            logits = model(glyph_vectors=vectors, glyph_index=rows[None]).logits.double()
        handle.remove()
        logits = logits[:, 3] if name == PRETRAINED else logits
        answers = models.atlas.rows if name == PRETRAINED else {label: i for i, label in enumerate(answerer.labels)}
        return float(logits.log_softmax(-1)[0, answers[found.answer]])

    step = 1e-2
    slope = (log_share(1 + step) - log_share(1 - step)) / (2 * step)
    heat = found.tokens[place - 1].heat
    assert heat.sum() == pytest.approx(slope, rel=0.05, abs=1e-4) and np.abs(heat).max() > 0
    assert not heat[models.atlas.pictures(models.atlas.rows["天"]) == 0].any()
    assert (heat != found.tokens[0].heat).any()
    assert not model.glyph_model.hanglyph.stem._forward_pre_hooks


@pytest.mark.parametrize("truncation", ["head", "head+tail"])
def test_a_heat_map_is_of_what_the_model_reads(directories: dict[str, Path], tmp_path: Path, truncation: str) -> None:
    """Of a model that was fine-tuned on eight tokens these, though it has room for more; as its answer is."""
    shutil.copytree(directories["judge"], tmp_path / "judge")
    path = tmp_path / "judge" / "config.json"
    reading = {"max_length": 8, "truncation": truncation}
    path.write_text(json.dumps({**json.loads(path.read_text()), "reading": reading}))
    answerer = load_answerer(tmp_path / "judge", 5)
    text = TEXT[:24]
    answer, found = answerer(text, "the text"), heat_map(answerer, text, "gradient")
    kept = text[:6] if truncation == "head" else text[:2] + text[-4:]
    assert "".join(token.token for token in found.tokens) == kept and answer.note
    assert (found.answer, pytest.approx(found.share, abs=1e-5)) == answer.choices[0][0]


@pytest.mark.parametrize("source", SOURCES)
def test_an_attack_replaces_as_many_as_it_says(models: Models, source: str) -> None:
    text = "天地▢黄, abc 龘"
    for count in (1, 2, 9):
        made = attack(models, PRETRAINED, text, count, source, seed=3)
        changed = [i for i, (old, new) in enumerate(zip(made.before, made.after, strict=True)) if old != new]
        assert len(changed) == min(count, 3) and set(changed) <= {0, 1, 3}  # 龘 is not in the vocabulary
        assert all(made.after[i] in models.predicted_han() for i in changed)
        assert [*made.answers] == ["GlyphCRM", "BERT"]
        assert made == attack(models, PRETRAINED, text, count, source, seed=3)
        assert made.answers["BERT"][1] == models.berts[PRETRAINED](made.after, "the text")
    assert [*attack(models, "judge", text, 1, source, seed=0).answers] == ["GlyphCRM"]


def test_the_shipped_checkpoint_answers() -> None:
    models = load_models(SHIPPED)
    html = rendering.answer(models.filler("我们去北▢。", "the text"))
    assert html.count("<tr>") == 5
    pixels = attack(models, PRETRAINED, "中华人民共和▢", 2, "fewest different pixels", seed=1)
    assert pixels.before != pixels.after
    heat = heat_map(models.filler, "今天▢气", "gradient")
    assert heat.answer in models.atlas.rows and any(token.heat.any() for token in heat.tokens)


def test_nothing_that_is_shown_is_obeyed(models: Models) -> None:
    evil = "<script>alert(1)</script>"
    shown = rendering.answer(Answer(evil, {}, choices=(((evil, 0.5),),), note=evil)) + rendering.message(evil)
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 4


def test_a_tab_in_a_text_makes_no_pair_of_it(models: Models) -> None:
    text, apart = TEXT[:4] + "\t" + TEXT[4:8], TEXT[:4] + " " + TEXT[4:8]
    assert bounded(text) == apart
    found, expected = (attack(models, "judge", t, 2, "fewest different pixels", 0) for t in (text, apart))
    assert found == expected


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda m: see_typed(m, "天地", ""), "2 characters; type one"),
        (lambda m: see_typed(m, "\u200b", ""), "0 characters"),
        (lambda m: see_typed(m, "好", ""), "no picture of 好"),
        (lambda m: see_typed(m, "天", "天地"), "the sentence has 0 ▢"),
        (lambda m: see_typed(m, "天", "▢" * 3), "the sentence has 3 ▢"),
        (lambda m: see_typed(m, "天", "▢" + "天" * 100), "reads 64 at once"),
        (lambda m: see_typed(m, "天" * 1_000_000, ""), "1,000,000 characters; at most"),
        (lambda m: see_drawn(m, json.dumps(CROSS), "▢" * 1_000_000), "1,000,000 characters; at most"),
        (lambda m: heat_map(m.filler, "天地", "erasing"), "has no"),
        (lambda m: heat_map(m.filler, "天" * 25, "erasing"), "at most 24"),
        (lambda m: heat_map(m.tasks["names"], "天地", "gradient"), "finds names"),
        (lambda m: heat_map(m.tasks["judge"], "\u200b", "gradient"), "no character that is read"),
        (lambda m: attack(m, PRETRAINED, "abc▢", 1, "nearest for the model", 0), "no Chinese character"),
        (lambda m: attack(m, PRETRAINED, " ", 1, "nearest for the model", 0), "no text yet"),
    ],
)
def test_what_is_wrong_is_one_line(models: Models, ask: object, complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        ask(models)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("model", "tasks", "berts", "complaint"),
    [
        ("judge", (), (), "does not fill masks; give a pre-trained GlyphCRM"),
        ("nowhere", (), (), "no config.json there"),
        ("bert", (), (), "a bert model; give a directory with a saved GlyphCRM"),
        ("pretrained", ("pretrained",), (), "labels nothing"),
        ("pretrained", (), ("pretrained",), "a glyphcrm model; give a directory with a saved BERT"),
        ("pretrained", (), ("bert", "bert"), "stands beside the model 'pre-trained' already"),
    ],
)
def test_models_that_do_not_fit(
    directories: dict[str, Path], model: str, tasks: tuple[str, ...], berts: tuple[str, ...], complaint: str
) -> None:
    known = {**directories, "nowhere": Path("nowhere")}
    with pytest.raises(UserError, match=re.escape(complaint)):
        load_models(known[model], [known[name] for name in tasks], [known[name] for name in berts])


def test_a_model_is_named_by_what_the_user_named(models: Models, directories: dict[str, Path]) -> None:
    assert [*models.tasks] == ["judge", "names"]
    twice = load_models(directories["pretrained"], [directories["judge"], directories["judge"]])
    assert [*twice.tasks] == ["judge", str(directories["judge"])]

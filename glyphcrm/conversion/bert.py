"""A warm start from BERT: its encoder, embeddings of position and segment, and heads; HanGlyph is new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForPreTraining, set_seed

from glyphcrm.atlas_sources import with_input_only
from glyphcrm.config_file import read_config
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.conversion.release import EMBEDDINGS, renamed
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.font_file import Font
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import ENCODER_FIELDS
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS

MODULES = {
    **EMBEDDINGS,
    "bert.pooler.dense": "nsp.pooler",
    "cls.seq_relationship": "nsp.classifier",
    "cls.predictions.transform.dense": "mlm.dense",
    "cls.predictions.transform.LayerNorm": "mlm.norm",
}
HEAD_PREFIXES = ("cls.", "bert.pooler.")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def convert_bert(directory: Path, fonts: Sequence[Font], seed: int = 0) -> tuple[GlyphCRMForPreTraining, GlyphAtlas]:
    """Return a GlyphCRM whose encoder and heads come from a transformers BERT, and its atlas.

    The vocabulary is BERT's single characters that the fonts draw, in BERT's order; its word pieces
    have no picture and are left out. Every other character of the fonts becomes an input-only row.
    HanGlyph starts afresh, so the model has to be trained before it is of use.

    Raises `UserError`: no whole BERT there, or one with relative positions.
    """
    bert = _read_bert(directory)
    rows_of_bert = _read_vocabulary(directory, len(bert.cls.predictions.decoder.weight))
    characters = [t for t, _ in sorted(rows_of_bert.items(), key=lambda item: item[1]) if _is_readable(t, fonts)]
    drawn = GlyphAtlas.build([*SPECIAL_TOKENS, *characters], fonts, leave_out=True, progress=True)
    vocabulary = drawn.tokens
    atlas = with_input_only(drawn, fonts)
    set_seed(seed)
    same = {name: getattr(bert.config, name) for name in ENCODER_FIELDS}
    config = GlyphCRMConfig(vocab_size=len(vocabulary), num_glyphs=len(vocabulary), **same)
    model = GlyphCRMForPreTraining.from_atlas(config, atlas)
    parameters = bert.state_dict()
    ours = renamed(parameters, MODULES)
    rows = torch.tensor([rows_of_bert[token] for token in vocabulary])
    ours["mlm.decoder.weight"] = parameters["cls.predictions.decoder.weight"][rows]
    ours["mlm.decoder.bias"] = parameters["cls.predictions.decoder.bias"][rows]
    unexpected = model.load_state_dict(ours, strict=False).unexpected_keys
    assert not unexpected, unexpected
    return model.eval(), atlas


def _read_bert(directory: Path) -> BertForPreTraining:
    """Load the BERT; its heads may be missing (they start afresh), nothing else."""
    read_config(directory, ("BERT",))
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a damaged or hostile configuration makes transformers raise
        raise UserError(f"{directory}: config.json cannot be read ({type(error).__name__})") from error
    if not isinstance(config, BertConfig) or config.is_decoder:
        kind = "decoder" if isinstance(config, BertConfig) else f"{config.model_type} model"
        raise UserError(f"{directory}: a {kind}; give a BERT encoder")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{directory}: a BERT with relative positions; give one with absolute ones")
    try:
        loaded: Any = BertForPreTraining.from_pretrained(directory, config=config, output_loading_info=True)
    except Exception as error:  # likewise of the weights
        raise UserError(f"{directory}: the weights cannot be loaded safely ({type(error).__name__})") from error
    bert, report = loaded
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(HEAD_PREFIXES))
    if missing or report["mismatched_keys"]:
        wrong = missing[0] if missing else sorted(report["mismatched_keys"])[0]
        raise UserError(f"{directory}: the weights lack {wrong}, or it has another shape; copy the BERT again")
    return bert


def _read_vocabulary(directory: Path, rows: int) -> dict[str, int]:
    """Return the row of each token that has one among the `rows` of the weights."""
    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        raise UserError(f"{directory}: no {' or '.join(TOKENIZER_FILES)}; give a BERT with its tokenizer")
    try:
        vocabulary = AutoTokenizer.from_pretrained(directory, trust_remote_code=False).get_vocab()
    except Exception as error:  # whatever a damaged tokenizer makes transformers raise
        raise UserError(f"{directory}: the tokenizer cannot be read ({type(error).__name__})") from error
    # transformers adds special tokens that the vocabulary lacks, at its end.
    missing = [token for token in SPECIAL_TOKENS if vocabulary.get(token, rows) >= rows]
    if missing:
        raise UserError(f"{directory}: the vocabulary lacks {' '.join(missing)}; give a BERT that has them")
    if max(vocabulary.values()) >= rows:
        raise UserError(
            f"{directory}: the vocabulary has {max(vocabulary.values()) + 1} tokens, the weights {rows} rows; "
            "copy both from the same BERT"
        )
    return vocabulary


def _is_readable(token: str, fonts: Sequence[Font]) -> bool:
    return len(token) == 1 and normalize(token) == token and any(font.covers(token) for font in fonts)

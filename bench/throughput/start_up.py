"""Start-up: a fresh process imports, loads a checkpoint and encodes its first sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import BertModel, BertTokenizerFast

from bench.throughput.environment import ROOT
from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import bert_config
from glyphcrm.tokenization import GlyphCRMTokenizer

# What a user of either writes.
PROGRAM = """
import sys
import torch
{imports}
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1])
with torch.inference_mode():
    states = model(**tokenizer("国家主席发表新年讲话，迈向充满希望的新世纪。", return_tensors="pt")).last_hidden_state
assert states.isfinite().all() and states.shape[:2] == (1, 24), states.shape
"""


def write_glyphcrm(name: str, vocabulary: int, atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer, path: Path) -> None:
    """Write a checkpoint of a preset with new weights, as pre-training writes it."""
    GlyphCRMForPreTraining.from_atlas(preset(name, vocab_size=vocabulary), atlas).save_pretrained(path)
    tokenizer.save_pretrained(path)


def write_bert(name: str, vocabulary: int, atlas: GlyphAtlas, path: Path) -> None:
    """Write a BERT of the same sizes and vocabulary with its tokenizer."""
    torch.manual_seed(0)
    BertModel(bert_config(preset(name, vocab_size=vocabulary, num_glyphs=vocabulary))).save_pretrained(path)
    vocab = {token: i for i, token in enumerate(atlas.tokens[:vocabulary])}
    BertTokenizerFast(vocab=vocab).save_pretrained(path)


def start(checkpoint: Path, imports: str = "") -> None:
    """Run the program to its end."""
    program = PROGRAM.format(imports=imports)
    subprocess.run([sys.executable, "-c", program, str(checkpoint)], cwd=ROOT, check=True)

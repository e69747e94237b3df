"""Checkpoints, configurations, tokenizers and released weights; what a tokenizer does with any string."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from glyphcrm.cli.entry import main
from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.robustness.file_surfaces import FINETUNING_BEGINS, PRETRAIN, PRETRAINING_BEGINS, taken
from tests.robustness.material import CHARACTERS, models, whole_task, whole_text
from tests.robustness.mutation import VALUES, damaged, damaged_json
from tests.robustness.runner import Case, refusable


def checkpoint(kind: str, rng: random.Random, directory: Path) -> Case:
    """A model's directory with a damaged file, through a command that reads it."""
    model = Path(shutil.copytree(models() / kind, directory / "model"))
    path = rng.choice(sorted(path for path in model.iterdir() if path.is_file()))
    content = path.read_bytes()
    if rng.random() < 0.05:
        path.unlink()
    else:
        path.write_bytes((damaged_json if path.suffix == ".json" else damaged)(rng, content))
    out = directory / "out"
    both = (
        ["convert-half", "--model", str(model), "--out", str(out)],
        ["finetune", "--task", str(whole_task()), "--seeds", "1", "--model", str(model), "--output-dir", str(out)],
    )
    commands = {
        "glyphcrm": (
            *both,
            ["atlas", "add", "龟", "--model", str(model), "--out", str(out)],
            ["atlas", "show", "天", "--atlas", str(model), "--out", str(out)],
            ["predict", "天[MASK]", "--model", str(model)],
            [*PRETRAIN, "--data", str(whole_text()), "--init", str(model), "--output-dir", str(out)],
        ),
        "bert": (*both, ["convert-bert", "--bert", str(model), "--out", str(out)]),
    }
    words = rng.choice(commands[kind])

    def call() -> int:
        # What fonts draw beyond a BERT's vocabulary takes seconds.
        with mock.patch("glyphcrm.conversion.bert.with_input_only", lambda atlas, fonts: atlas):
            return taken(partial(taken, partial(main, words), PRETRAINING_BEGINS), FINETUNING_BEGINS)

    return Case(call, f"{words[:2]} {path.name}", out)


class Hostile:
    """Would make a file if a pickle of it was trusted."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def release(rng: random.Random, directory: Path) -> Case:
    """A foreign or damaged pickle as a released checkpoint; it runs no code."""
    out, weights = directory / "out", directory / "weights.pt"
    hostile = Hostile(out)
    buffer = io.BytesIO()
    content: Any = rng.choice(
        (hostile, {"model": hostile}, {"model": {"a": hostile}}, {"model": {"a": torch.zeros(3)}})
    )
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    forms = (buffer.getvalue(), damaged(rng, buffer.getvalue()), pickle.dumps(content, rng.randrange(5)), b"")
    weights.write_bytes(rng.choice(forms))
    (directory / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\n")
    np.savez(directory / "pictures.npz", np.zeros((5, 288), np.uint8))
    words = ["convert-release", "--weights", str(weights), "--vocab", str(directory / "vocab.txt")]
    words += ["--bitmaps", str(directory / "pictures.npz"), "--out", str(out)]
    return Case(partial(main, words), "pickle", out)


def configuration(rng: random.Random, directory: Path) -> Case:
    """Strange values in a configuration, as a library call: a `ValueError` or a configuration."""
    fields = preset("nano").to_dict()
    for name in rng.sample(sorted(fields), rng.choice((1, 1, 2, 5))):
        fields[name] = rng.choice(VALUES)

    def call() -> None:
        GlyphCRMConfig.from_dict(fields)

    return Case(refusable(call), "configuration", directory / "out")


TOKENIZER_KEYS = (
    *("model_max_length", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token", "extra_special_tokens"),
    *("additional_special_tokens", "added_tokens_decoder", "auto_map", "tokenizer_class", "vocab_file", "backend"),
    *("padding_side", "truncation_side", "split_special_tokens", "clean_up_tokenization_spaces", "chat_template"),
    *("model_input_names", "name_or_path", "is_local", "tokenizer_file", "post_processor", "vocab", "merges"),
)
TOKENIZER_VALUES = (
    *(*VALUES, "../../../etc/passwd", "[UNK]", "天", {"0": {"content": "x"}}, {"-1": {"content": "天"}}, ["天", 5]),
    *({"99999999999": {"content": "天", "special": True}}, ["evil.Evil", None], {"content": "天"}, {"": "天"}),
)


def tokenizer_files(rng: random.Random, directory: Path) -> Case:
    """A tokenizer with a damaged file, as a library call that reads it, encodes and decodes."""
    model = Path(shutil.copytree(models() / "glyphcrm", directory / "model"))
    path = model / rng.choice(("tokenizer_config.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt"))
    if path.name == "tokenizer_config.json" and rng.random() < 0.7:
        settings = json.loads(path.read_bytes())
        settings |= {rng.choice(TOKENIZER_KEYS): rng.choice(TOKENIZER_VALUES) for _ in range(rng.choice((1, 1, 2)))}
        path.write_text(json.dumps(settings))
    else:
        path.write_bytes((damaged_json if path.suffix == ".json" else damaged)(rng, path.read_bytes()))
    if rng.random() < 0.02:
        path.unlink()

    def call() -> None:
        tokenizer = GlyphCRMTokenizer.from_pretrained(model)
        tokenizer.decode(tokenizer("天地[MASK]玄黄a", "宇宙", truncation=True, max_length=8)["input_ids"])

    return Case(refusable(call), path.name, directory / "out")


@cache
def tokenizer() -> GlyphCRMTokenizer:
    """Return the tokenizer of the small models."""
    return GlyphCRMTokenizer.from_pretrained(models() / "glyphcrm")


ALPHABETS: tuple[str, ...] = (
    CHARACTERS,
    " \t\n\r\u3000\xa0\u200b\u200d\ufeff\u00ad\u2028\x00\x01\x1b\x7f",
    "\u0301\u0304\u3099\u20e3\ufe0f\U000e0100\u0591",
    "e\u0301aA１ａ！，。▁##[]MASKUNKPD",
    "\u1100\u1161\u11a8가각ᄀ",
    "\ud800\udfff\udc00",
    "⼈⼯⻔㈱㎡か々豈﷽ﬁⅣ①",
    "🇨🇳👩\u200d🔬🏽☺\ufe0f𠮷𪚥",
)


def string(rng: random.Random, directory: Path) -> Case:
    """Any string: one encoding on all ways to it, offsets inside of it, ids that decode."""
    length = rng.choice((0, 1, 2, 3, 10, 40, 300))
    alphabets = rng.sample(ALPHABETS, rng.randint(1, 3))
    text = "".join(
        rng.choice(rng.choice(alphabets)) if rng.random() < 0.9 else chr(rng.randrange(0x110000)) for _ in range(length)
    )

    def call() -> int:
        encode = partial(tokenizer(), text, add_special_tokens=False, split_special_tokens=True)
        ids = tokenizer().encode_characters(text).tolist()
        assert encode()["input_ids"] == ids, "not the ids of pre-training"
        found = encode(return_offsets_mapping=True)
        assert found["input_ids"] == ids, "offsets change the ids"
        starts = [start for start, _ in found["offset_mapping"]]
        assert starts == sorted(starts), "offsets go back"
        assert all(0 <= start < end <= len(text) for start, end in found["offset_mapping"]), "offsets outside"
        tokenizer().decode([*ids, -100, 10**9, rng.randrange(-(2**40), 2**40)])
        pair = tokenizer()(text, text[::-1], truncation=True, max_length=16, padding="max_length")
        assert len(pair["input_ids"]) == 16
        return 0

    return Case(call, repr(text), directory / "out")

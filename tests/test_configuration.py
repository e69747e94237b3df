"""Configurations that no model can be made of are refused in one line, before anything of their size is made."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from glyphcrm.checkpoint import load_checkpoint
from glyphcrm.cli.entry import main
from glyphcrm.config_values import FRACTIONS, PRESETS, SIZES, TOKEN_IDS
from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.errors import UserError
from glyphcrm.modeling import GlyphCRMForPreTraining

STRANGE: tuple[Any, ...] = (-1, 10**9, 2**63, 1e308, float("nan"), float("inf"), "x", [], {}, True, [1], {"a": 1})
# What is also right for some of the fields.
RIGHT = {
    "glyph_fonts": ([],),
    "architectures": ([],),
    "id2label": ({},),
    "label2id": ({}, {"a": 1}),  # of label -> id
    "tokens_sha256": ("x",),
    "bitmaps_sha256": ("x",),
    "glyph_cache": (True,),
    "tie_word_embeddings": (True,),
}
CHECKED = (
    *(*SIZES, *FRACTIONS, *TOKEN_IDS, *RIGHT, "num_labels"),
    *("hidden_act", "position_map", "position_initializer", "kernel_backend", "problem_type", "dtype"),
)


@pytest.mark.parametrize("name", CHECKED)
def test_strange_values_are_refused_wherever_they_come_from(name: str) -> None:
    plain = preset("nano").to_dict()
    for value in STRANGE:
        if any(value is right or (type(value), value) == (type(right), right) for right in RIGHT.get(name, ())):
            continue
        for make in (
            lambda changed: GlyphCRMConfig(**{**plain, **changed}),
            lambda changed: GlyphCRMConfig.from_dict({**plain, **changed}),
            lambda changed: GlyphCRMConfig.from_dict(dict(plain), **changed),
        ):
            with pytest.raises(UserError) as refused:
                make({name: value})
            assert "\n" not in str(refused.value)


@settings(deadline=None)  # the first configuration registers the models
@given(st.dictionaries(st.sampled_from(CHECKED), st.sampled_from(STRANGE) | st.integers() | st.floats() | st.text()))
def test_any_mixture_is_made_or_refused(values: dict[str, Any]) -> None:
    try:
        config = GlyphCRMConfig(**{**PRESETS["nano"], **values})
    except UserError:
        return
    assert config.hidden_size % config.num_attention_heads == 0 and config.num_hidden_layers <= 256


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"null", b'"x"', b"{", b"\xff\xfe", b'{"a":' * 50_000])
def test_files_that_hold_no_configuration(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises((UserError, OSError)):  # of transformers, where it cannot read the file
        GlyphCRMConfig.from_pretrained(tmp_path)
    with pytest.raises(UserError) as refused:
        load_checkpoint(tmp_path, GlyphCRMForPreTraining)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", list(PRESETS))
def test_presets_and_what_is_saved_of_them_are_accepted(kind: str, tmp_path: Path) -> None:
    config = preset(kind, num_labels=3, pad_token_id=None, classifier_dropout=0)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path, dtype="float16")
    assert again.to_dict() == {**config.to_dict(), "dtype": "float16", "_name_or_path": again._name_or_path}


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 16_384, "num_attention_heads": 2},
        {"stem_channels": 1024},
        {"glyph_channels": 1024},
        {"intermediate_size": 65_536},
        {"max_position_embeddings": 1_048_576},
        {"num_hidden_layers": 4},
        {"vocab_size": 6},
    ],
)
def test_sizes_that_are_not_the_weights_cost_no_memory(change: dict[str, int], directory: Path) -> None:
    load_checkpoint(directory, GlyphCRMForPreTraining, heads=True)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"model: .*(weights|by config)"):
        load_checkpoint(directory, GlyphCRMForPreTraining, heads=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_commands_say_it_in_one_line(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()  # transformers' bar
    for file, content in (
        ("config.json", "[]"),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"classifier_dropout": -1}),
        ("config.json", {"architectures": 5}),
        ("config.json", {"num_labels": 10**9}),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", {"model_max_length": {}}),
        ("model.safetensors", "0" * 100),
    ):
        damaged = Path(shutil.copytree(directory, tmp_path / "damaged", dirs_exist_ok=True))
        path = damaged / file
        kept = path.read_bytes()
        path.write_text(content if isinstance(content, str) else json.dumps({**json.loads(kept), **content}))
        out = str(tmp_path / "out")
        commands = [["atlas", "add", "龟", "--model", str(damaged), "--out", out]]
        if file != "tokenizer_config.json":  # not read there
            commands.append(["convert-half", "--model", str(damaged), "--out", out])
        for words in commands:
            assert main(words) == 2, (file, content)
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and error.startswith("error: ") and str(damaged) in error
        assert not Path(out).exists()

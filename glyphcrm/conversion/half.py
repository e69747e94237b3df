"""A checkpoint with its weights in float16: half the size on disk, still computed in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from glyphcrm.checkpoint import WEIGHTS_FILE, load_atlas, weight_files
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError
from glyphcrm.files import whole_directory
from glyphcrm.loader_file import LOADER_FILE

COPIED_FILES = (
    *("config.json", LOADER_FILE, "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)


def convert_half(directory: Path, out: Path) -> None:
    """Write the checkpoint in `directory` (GlyphCRM or another transformers model) with float16 weights to `out`.

    Integers, such as the atlas, stay as they are. The configuration's `dtype` stays too, so that
    `from_pretrained` casts the weights back to what the model was trained in.

    Weights in several safetensors files become one.

    Raises `UserError`: no checkpoint with safetensors files, pictures without the digest that config.json has, a
    weight beyond float16's range, or `out` cannot be written.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json holds no object")
        if config.get("model_type") == GlyphCRMConfig.model_type:
            load_atlas(directory)
        tensors: dict[str, torch.Tensor] = {}
        metadata: dict[str, str] | None = None
        for source in weight_files(directory):
            with safe_open(source, framework="pt") as file:
                metadata = file.metadata()
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{directory}: no config.json and {WEIGHTS_FILE} that can be read ({error})") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            halved = tensor.half()
            if not torch.isfinite(halved).all():
                raise UserError(
                    f"{directory}: {name} has values that float16 cannot hold; keep the checkpoint as it is"
                )
            tensors[name] = halved
    config.setdefault("dtype", "float32")
    with whole_directory(out) as temporary:
        save_file(tensors, temporary / WEIGHTS_FILE, metadata)
        for name in COPIED_FILES:
            if (directory / name).exists():
                shutil.copy(directory / name, temporary / name)
        (temporary / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")

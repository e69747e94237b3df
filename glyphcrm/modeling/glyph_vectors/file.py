"""The vectors of a whole atlas in a file beside the weights, tied to them by a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from glyphcrm.files import write_atomically
from glyphcrm.modeling.hanglyph import GlyphVectors, HanGlyph, in_pieces

VECTORS_FILE = "glyph_vectors.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PIECE = 64  # characters at once: the bar moves every second or so on a CPU
DIGEST = "sha256_of_weights_and_bitmaps"


@torch.no_grad()
def save_vectors(path: Path, hanglyph: HanGlyph, bitmaps: Tensor, dtype: torch.dtype) -> None:
    """Encode all pictures, with a progress bar, and write their vectors to `path`, whole or not at all.

    `bitmaps` are ``(N, 288)`` uint8 on HanGlyph's device, `dtype` is that of the vectors in the file, one of `DTYPES`.
    Raises `UserError` if the file cannot be written.
    """
    with tqdm(total=len(bitmaps), desc="encoding", unit=" characters", dynamic_ncols=True) as bar:

        def make(piece: Tensor) -> tuple[Tensor, ...]:
            made = tuple(vectors.to("cpu", dtype) for vectors in hanglyph(piece, bitmaps))
            bar.update(len(piece))
            return made

        vectors = in_pieces(make, torch.arange(len(bitmaps), device=bitmaps.device).split(PIECE))
    tensors = dict(zip(GlyphVectors._fields, vectors, strict=True))
    write_atomically(path, save(tensors, metadata={"format": "pt", DIGEST: vectors_digest(hanglyph, bitmaps)}))


def load_vectors(path: Path) -> tuple[GlyphVectors, str]:
    """Return the vectors of a file, ``(N, d)`` each and all of one of `DTYPES`, on the CPU, and their digest.

    Raises `ValueError`: it is truncated or damaged, or no such file; says how.
    """
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST, "")
            vectors = GlyphVectors(*(file.get_tensor(name) for name in GlyphVectors._fields))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"it is truncated or damaged ({error})") from error
    shapes, dtypes = {part.shape for part in vectors}, {part.dtype for part in vectors}
    if len(shapes) > 1 or vectors.vector.dim() != 2 or len(dtypes) > 1 or not dtypes <= set(DTYPES.values()):
        found = ", ".join(f"{name} {tuple(part.shape)} {part.dtype}" for name, part in vectors._asdict().items())
        raise ValueError(f"it holds {found}; expected three times (rows, d) in float32 or float16")
    return vectors, digest


def vectors_digest(hanglyph: HanGlyph, bitmaps: Tensor) -> str:
    """Return the SHA-256 of all that the vectors depend on: weights, position channels, pictures.

    Weights count as float32, so that a model stored in float16 has one digest, whatever it is loaded as.
    """
    digest = hashlib.sha256(hanglyph.config.position_map.encode())
    for name, tensor in (*sorted(hanglyph.named_parameters()), ("bitmaps", bitmaps)):
        wide = tensor.detach().float() if tensor.is_floating_point() else tensor
        digest.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
        digest.update(wide.cpu().contiguous().numpy().data)
    return digest.hexdigest()

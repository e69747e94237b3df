"""The released GlyphCRM in float64 NumPy, written from the specification alone.

Nothing here imports torch, transformers or glyphcrm: what the product computes is compared with this, so the
two must not share a line. Parameters carry the names of a released checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Parameters = Mapping[str, np.ndarray]

IMAGE_SIZE = 48  # pixels
HEAD_SIZE = 64
LAYER_NORM_EPSILON = 1e-12
NO_LABEL = -100


@dataclass(frozen=True)
class GlyphStages:
    """HanGlyph's stages for U images."""

    images: np.ndarray  # (U, 48, 48), ink 1
    pictures: np.ndarray  # (U, 3, 48, 48): image, x, y
    stem: np.ndarray  # (U, C1, 48, 48)
    block1: np.ndarray  # (U, C1, 12, 12)
    block2: np.ndarray  # (U, C2, 3, 3)
    glyph: np.ndarray  # (U, d)
    skip1: np.ndarray  # (U, d)
    skip2: np.ndarray  # (U, d)


@dataclass(frozen=True)
class Stages:
    """Every stage of the model for a batch of B sequences of L tokens."""

    rows: np.ndarray  # (U,), the distinct token ids of the batch, ascending
    glyphs: GlyphStages  # of `rows`
    hidden_states: list[np.ndarray]  # embedding output, then one (B, L, d) a block
    mlm_logits: np.ndarray  # (B, L, V)
    nsp_logits: np.ndarray  # (B, 2)

    def mlm_loss(self, labels: np.ndarray) -> float:
        """Mean cross-entropy over the positions of `labels` (B, L) that are not -100."""
        chosen = labels != NO_LABEL
        return cross_entropy(self.mlm_logits[chosen], labels[chosen])

    def nsp_loss(self, labels: np.ndarray) -> float:
        """Mean cross-entropy of `labels` (B,)."""
        return cross_entropy(self.nsp_logits, labels)


def run_release(
    parameters: Parameters,
    bitmaps: np.ndarray,
    input_ids: np.ndarray,
    token_type_ids: np.ndarray,
    attention_mask: np.ndarray,
) -> Stages:
    """Run the released model without dropout.

    `bitmaps` (V, 288) uint8 holds the bit-packed images, row = token id; the other three are (B, L) integers.
    """
    parameters = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    rows, index = np.unique(input_ids, return_inverse=True)
    index = index.reshape(input_ids.shape)
    glyphs = encode_glyphs(parameters, bitmaps[rows])

    length = input_ids.shape[1]
    embedded = (
        glyphs.glyph[index]
        + parameters["bert.embeddings.position_embeddings.weight"][:length]
        + parameters["bert.embeddings.token_type_embeddings.weight"][token_type_ids]
    )
    hidden = layer_norm(parameters, "bert.embeddings.LayerNorm", embedded)
    hidden_states = [hidden]
    skips = {0: glyphs.skip1[index], 1: glyphs.skip2[index]}
    block = 0
    while f"bert.encoder.layer.{block}.output.dense.weight" in parameters:
        hidden = encoder_block(parameters, block, hidden, attention_mask, skips.get(block))
        hidden_states.append(hidden)
        block += 1

    pooled = np.tanh(linear(parameters, "pooler.dense", hidden[:, 0]))
    return Stages(
        rows=rows,
        glyphs=glyphs,
        hidden_states=hidden_states,
        mlm_logits=mlm_logits(parameters, hidden),
        nsp_logits=linear(parameters, "nsp.seq_relationship", pooled),
    )


def encode_glyphs(parameters: Parameters, bitmaps: np.ndarray) -> GlyphStages:
    """HanGlyph on packed images (N, 288)."""
    images = np.unpackbits(bitmaps, axis=1).reshape(-1, IMAGE_SIZE, IMAGE_SIZE).astype(np.float64)
    row, column = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    x, y = (column - 24) * 0.02, -(row - 24) * 0.02
    pictures = np.stack([images, np.broadcast_to(x, images.shape), np.broadcast_to(y, images.shape)], axis=1)

    stem = relu(convolve(parameters, "cnn_embedding.conv_pre", pictures, padding=1))
    block1 = residual_block(parameters, "cnn_embedding.conv1", stem)
    widened = relu(convolve(parameters, "cnn_embedding.conv_pre_2", block1, padding=1))
    block2 = residual_block(parameters, "cnn_embedding.conv2", widened)

    flat1, flat2 = (block.reshape(len(block), -1) for block in (block1, block2))  # channel-major
    return GlyphStages(
        images=images,
        pictures=pictures,
        stem=stem,
        block1=block1,
        block2=block2,
        glyph=np.tanh(linear(parameters, "cnn_embedding.fc1", flat2)),
        skip1=np.tanh(linear(parameters, "cnn_embedding.first_linear", flat1)),
        skip2=np.tanh(linear(parameters, "cnn_embedding.second_linear", flat2)),
    )


def residual_block(parameters: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    """MaxPool(ReLU(F(x) + MaxPool(x))), F three unpadded convolutions with ReLU after the first two."""
    f = relu(convolve(parameters, f"{name}_1", x))
    f = relu(convolve(parameters, f"{name}_2", f))
    f = convolve(parameters, f"{name}_3", f)
    return max_pool(relu(f + max_pool(x)))


def encoder_block(
    parameters: Parameters,
    block: int,
    hidden: np.ndarray,
    attention_mask: np.ndarray,
    skip: np.ndarray | None,
) -> np.ndarray:
    """A post-LN block: LN(h + MHA(h)), then LN(h' + FFN(h') [+ skip])."""
    name = f"bert.encoder.layer.{block}"
    query, key, value = (
        split_heads(linear(parameters, f"{name}.attention.self.{part}", hidden)) for part in ("query", "key", "value")
    )
    scores = np.einsum("bhqs,bhks->bhqk", query, key) / math.sqrt(HEAD_SIZE)
    scores = np.where(attention_mask[:, None, None, :] == 1, scores, -np.inf)
    attended = np.einsum("bhqk,bhks->bqhs", np.exp(log_softmax(scores)), value).reshape(hidden.shape)
    attended = linear(parameters, f"{name}.attention.output.dense", attended)
    hidden = layer_norm(parameters, f"{name}.attention.output.LayerNorm", hidden + attended)

    fed = linear(parameters, f"{name}.output.dense", gelu(linear(parameters, f"{name}.intermediate.dense", hidden)))
    total = hidden + fed if skip is None else hidden + fed + skip
    return layer_norm(parameters, f"{name}.output.LayerNorm", total)


def mlm_logits(parameters: Parameters, hidden: np.ndarray) -> np.ndarray:
    transformed = gelu(linear(parameters, "mlm.predictions.transform.dense", hidden))
    transformed = layer_norm(parameters, "mlm.predictions.transform.LayerNorm", transformed)
    return linear(parameters, "mlm.predictions.decoder", transformed)


def linear(parameters: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def layer_norm(parameters: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    normal = centred / np.sqrt(variance + LAYER_NORM_EPSILON)
    return normal * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def convolve(parameters: Parameters, name: str, x: np.ndarray, padding: int = 0) -> np.ndarray:
    """Cross-correlation of (N, C, H, W) at stride 1, an image at a time to bound the memory."""
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    outputs = []
    for image in x:
        windows = sliding_window_view(image, weight.shape[2:], axis=(1, 2))
        outputs.append(np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None])
    return np.stack(outputs)


def max_pool(x: np.ndarray) -> np.ndarray:
    n, channels, height, width = x.shape
    return x.reshape(n, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))


def split_heads(x: np.ndarray) -> np.ndarray:
    """(B, L, d) to (B, heads, L, 64)."""
    return x.reshape(*x.shape[:2], -1, HEAD_SIZE).transpose(0, 2, 1, 3)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())

"""What all GlyphCRM models share: how they are made, what they read, how they are loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas, bitmaps_digest, tokens_digest
from glyphcrm.modeling.attention import SelfAttention
from glyphcrm.modeling.encoder import EncoderBlock
from glyphcrm.modeling.glyph_vectors.file import VECTORS_FILE
from glyphcrm.modeling.hanglyph import GlyphTable, GlyphVectors, HanGlyph, he_std, position_map
from glyphcrm.modeling.positions import PositionEmbedding, sinusoidal_positions
from glyphcrm.normalization import normalize
from glyphcrm.tokens import VOCABULARY_FILE, read_vocabulary

if TYPE_CHECKING:
    from glyphcrm.modeling.model import GlyphCRMModel


class GlyphCRMPreTrainedModel(PreTrainedModel):
    """A GlyphCRM, with a head or without: initialisation, the atlas, the load-time check."""

    config: GlyphCRMConfig
    config_class = GlyphCRMConfig
    base_model_prefix = "glyphcrm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HanGlyph", "EncoderBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # What is no part of the encoder: a checkpoint of one head may be loaded into a model with another.
    _keys_to_ignore_on_load_unexpected = [
        r"^(?!(glyphcrm|glyph_table|hanglyph|position_embeddings|token_type_embeddings|embedding_norm|blocks)\.)"
    ]
    _can_record_outputs = {"hidden_states": EncoderBlock, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            # He initialisation keeps the signal's scale through the ReLUs; BERT's 0.02 would lose it.
            init.normal_(module.weight, mean=0.0, std=he_std(module))
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):  # transformers knows them by their names, and AddNorm by none
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, HanGlyph):
            init.copy_(module.positions, position_map(module.config.position_map))
        elif isinstance(module, PositionEmbedding) and self.config.position_initializer == "sinusoidal":
            count, width, scale = module.num_embeddings, module.embedding_dim, self.config.position_initializer_scale
            init.copy_(module.weight, sinusoidal_positions(count, width, scale))
        elif isinstance(module, GlyphTable):
            init.zeros_(module.bitmaps)
            init.zeros_(module.sources)
        else:
            super()._init_weights(module)

    @property
    def glyph_model(self) -> GlyphCRMModel:
        """The model without heads."""
        return cast("GlyphCRMModel", self.base_model)

    @classmethod
    def from_atlas(cls, config: GlyphCRMConfig, atlas: GlyphAtlas) -> Self:
        """Build a new model with random weights around an atlas, its glyph projections whitened over it."""
        config.num_glyphs = len(atlas)
        model = cls(config)
        model.set_atlas(atlas)
        base = model.glyph_model
        spread = config.glyph_initializer_spread
        base.hanglyph.whiten_projections(base.frequent_rows(), base.glyph_table.bitmaps, spread)
        return model

    def set_atlas(self, atlas: GlyphAtlas) -> None:
        """Make the model read this atlas from now on.

        A trained model keeps its meaning when the new atlas only appends rows: they can be read at once. An atlas
        below `config.vocab_size` raises `UserError`.
        """
        if len(atlas) < self.config.vocab_size:
            raise UserError(f"the atlas has {len(atlas)} rows; the model predicts {self.config.vocab_size} of them")
        table = self.glyph_model.glyph_table
        table.bitmaps = torch.tensor(atlas.bitmaps, device=table.bitmaps.device)
        table.sources = torch.tensor(atlas.sources, device=table.sources.device)
        table.read_in_fonts(None)
        self.glyph_model.rows = dict(atlas.rows)
        self.config.num_glyphs = len(atlas)
        self.config.glyph_fonts = list(atlas.fonts)
        self.config.tokens_sha256 = tokens_digest(atlas.tokens)
        self.config.bitmaps_sha256 = bitmaps_digest(atlas.bitmaps)

    def set_training_fonts(self, atlases: Sequence[GlyphAtlas]) -> None:
        """Let training read each character in one of several fonts: its own, or that of one of these atlases.

        At each step a font is drawn at random for each distinct character. In evaluation mode the model reads its own
        atlas, which alone is saved with it. `set_atlas` ends this.

        Args:
            atlases: of the model's own tokens, as `GlyphAtlas.redrawn` makes them.

        Raises:
            UserError: an atlas has other tokens.
        """
        table = self.glyph_model.glyph_table
        if any(tokens_digest(atlas.tokens) != self.config.tokens_sha256 for atlas in atlases):
            raise UserError("an atlas has other tokens than the model's own; make it of that with redrawn()")
        redrawn = [torch.tensor(atlas.bitmaps, device=table.bitmaps.device) for atlas in atlases]
        table.read_in_fonts(torch.cat([table.bitmaps, *redrawn]) if redrawn else None)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Each token and its atlas row, in the order of the rows.

        It comes from the atlas, or from the ``vocab.txt`` that was saved with the weights. Raises `UserError` where
        there is none, or that of another atlas.
        """
        base = self.glyph_model
        if not base.rows:
            where = self.name_or_path
            path = where and cached_file(
                where, VOCABULARY_FILE, subfolder=base.subfolder, _raise_exceptions_for_missing_entries=False
            )
            if not path:
                raise UserError(f"the model has ids but no characters: no {VOCABULARY_FILE} in {where!r}; give ids")
            tokens = read_vocabulary(path)
            if tokens_digest(tokens) != self.config.tokens_sha256:
                raise UserError(f"{path}: does not belong to the model's atlas; copy both from the same checkpoint")
            base.rows = {token: row for row, token in enumerate(tokens)}
        return base.rows

    def rows_of(self, text: str) -> Tensor:
        """Return the atlas rows ``(n,)`` int64 of a text's characters, as they are in its normal form.

        Raises `UserError` for a character that is in no row.
        """
        text, known = normalize(text), self.vocabulary
        if unknown := [f"{char} (U+{ord(char):04X})" for char in text if char not in known]:
            raise UserError(f"the model has no picture of {unknown[0]}; `glyphcrm atlas add` gives it one")
        return torch.tensor([known[char] for char in text], dtype=torch.int64)

    @torch.no_grad()
    def glyph_vectors(self, characters: str | Tensor | NDArray[np.uint8]) -> GlyphVectors:
        """Return what HanGlyph says of n characters, without gradients: three tensors ``(n, d)`` on the model's device.

        In evaluation mode the vectors are kept, as `config.glyph_cache` says. Those of pictures never are.

        Args:
            characters: a text, whose characters are those of its normal form (see `glyphcrm.normalization`); or ids
                ``(n,)`` int64; or pictures that need not be in the atlas, ``(n, 288)`` uint8, packed as by
                `glyphcrm.glyphs.raster.pack`.

        Raises:
            UserError: a character, or an id, is in no row of the atlas; or `characters` is none of the three.
        """
        base = self.glyph_model
        bitmaps = base.glyph_table()
        base._check_drawn(bitmaps)
        if isinstance(characters, str):
            characters = self.rows_of(characters)
        wanted = torch.as_tensor(characters, device=bitmaps.device)
        if wanted.dtype == torch.uint8 and wanted.shape[1:] == bitmaps.shape[1:]:
            return base.hanglyph.all_vectors(torch.arange(len(wanted), device=bitmaps.device), wanted)
        if wanted.dtype != torch.int64 or wanted.dim() != 1:
            raise UserError(
                f"characters are {wanted.dtype} {tuple(wanted.shape)}; give a text, ids (n,) int64, or packed pictures "
                f"(n, {bitmaps.shape[1]}) uint8"
            )
        if len(wanted):
            base._check_rows(*wanted.aminmax())
        kept = None
        if self.config.glyph_cache and not base.training:
            kept = base.glyph_cache.vectors(base.hanglyph, bitmaps, wanted)
        if kept is None:
            return base.hanglyph.all_vectors(wanted, bitmaps)
        return GlyphVectors(*(part[wanted] for part in kept))

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        # What transformers' public methods come down to. Reentrant checkpointing, which a user may ask for, gives no
        # gradients to what reads no tensor with gradients, as HanGlyph.
        name = "gradient_checkpointing_func"
        if enable:
            function = kwargs.get(name) or (args[0] if args else checkpoint)
            args, kwargs = args[1:], kwargs | {name: functools.partial(function, use_reentrant=False)}
        super()._set_gradient_checkpointing(enable, *args, **kwargs)

    def clear_glyph_cache(self) -> None:
        """Forget the vectors of characters met at inference; needed after weights were written to through ``.data``."""
        self.glyph_model.glyph_cache.clear()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; raises `UserError` if the atlas has not the digest in the configuration.

        The vectors that `glyphcrm atlas encode` has written to a directory are used if they fit the weights.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        where = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        model.glyph_model.subfolder = kwargs.get("subfolder") or ""
        bitmaps, expected = model.glyph_model.glyph_table.bitmaps, model.config.bitmaps_sha256
        if bitmaps.is_meta:
            return loaded
        if expected and bitmaps_digest(bitmaps.cpu().numpy()) != expected:
            raise UserError(
                f"{where}: the glyph bitmaps do not match the digest in config.json; "
                "the checkpoint is damaged, copy it again"
            )
        path = Path(str(where), model.glyph_model.subfolder, VECTORS_FILE)
        if model.config.glyph_cache and path.is_file():
            model.glyph_model.load_glyph_vectors(path)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        """There is none: characters are read as pictures. Use `set_atlas` to add characters."""
        raise NotImplementedError("GlyphCRM has no input embedding table; see set_atlas() to add characters")

"""GlyphCRMModel: HanGlyph on the distinct characters of a batch, then the encoder over all tokens."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas, bitmaps_digest
from glyphcrm.modeling.encoder import EncoderBlock, SelfAttention
from glyphcrm.modeling.hanglyph import GlyphTable, GlyphVectors, HanGlyph, he_std, position_map
from glyphcrm.modeling.positions import PositionEmbedding, sinusoidal_positions

# Glyphs over which the projections are whitened; the most frequent characters stand first in an atlas.
WHITENING_SAMPLE = 1536


class GlyphCRMPreTrainedModel(PreTrainedModel):
    """What all GlyphCRM models share: initialisation, the atlas, the load-time check."""

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
    # A checkpoint of one head may be loaded into a model with another.
    _keys_to_ignore_on_load_unexpected = [r"^(mlm|nsp|classifier)\."]
    _can_record_outputs = {"hidden_states": EncoderBlock, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            # He initialisation keeps the signal's scale through the ReLUs; BERT's 0.02 would lose it.
            init.normal_(module.weight, mean=0.0, std=he_std(module))
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
        return cast(GlyphCRMModel, self.base_model)

    @classmethod
    def from_atlas(cls, config: GlyphCRMConfig, atlas: GlyphAtlas) -> Self:
        """Build a new model with random weights around an atlas, ready to be trained.

        The glyph projections are whitened over the atlas (`HanGlyph.whiten_projections`), without
        which all characters look alike to the encoder at the start.
        """
        config.num_glyphs = len(atlas)
        model = cls(config)
        model.set_atlas(atlas)
        base = model.glyph_model
        # Row 0 is the blank [PAD]; the rows after the specials are the most frequent characters.
        rows = torch.arange(1, min(len(atlas), WHITENING_SAMPLE))
        base.hanglyph.whiten_projections(rows, base.glyph_table.bitmaps, config.glyph_initializer_spread)
        return model

    def set_atlas(self, atlas: GlyphAtlas) -> None:
        """Make the model read this atlas from now on.

        A trained model keeps its meaning when the new atlas only appends rows to the old one: the
        new characters can be read at once. It cannot shrink below `config.vocab_size`.
        """
        if len(atlas) < self.config.vocab_size:
            raise UserError(f"the atlas has {len(atlas)} rows; the model predicts {self.config.vocab_size} of them")
        table = self.glyph_model.glyph_table
        table.bitmaps = torch.from_numpy(atlas.bitmaps.copy()).to(table.bitmaps.device)
        table.sources = torch.from_numpy(atlas.sources.copy()).to(table.sources.device)
        self.config.num_glyphs = len(atlas)
        self.config.glyph_fonts = list(atlas.fonts)
        self.config.tokens_sha256 = atlas.tokens_digest()
        self.config.bitmaps_sha256 = atlas.bitmaps_digest()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; also checks the atlas against the digest in the configuration."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        bitmaps, expected = model.glyph_model.glyph_table.bitmaps, model.config.bitmaps_sha256
        if expected and not bitmaps.is_meta and bitmaps_digest(bitmaps.cpu().numpy()) != expected:
            raise UserError(
                f"{args[0] if args else kwargs.get('pretrained_model_name_or_path')}: the glyph bitmaps do not "
                "match the digest in config.json; the checkpoint is damaged, copy it again"
            )
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        """There is none: characters are read as pictures. Use `set_atlas` to add characters."""
        raise NotImplementedError("GlyphCRM has no input embedding table; see set_atlas() to add characters")


class GlyphCRMModel(GlyphCRMPreTrainedModel):
    """The encoder without heads: token ids (or prepared distinct glyphs) to hidden states."""

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__(config)
        self.glyph_table = GlyphTable(config)
        self.hanglyph = HanGlyph(config)
        self.position_embeddings = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        glyph_ids: Tensor | None = None,
        glyph_index: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Return the last hidden states ``(B, L, d)``.

        The characters come in one of three forms:

        * `input_ids` ``(B, L)`` int64. Their distinct values are found here (on a GPU this waits for
          the device once).
        * `glyph_ids` ``(U,)`` and `glyph_index` ``(B, L)`` int64 with
          ``input_ids == glyph_ids[glyph_index]``, prepared by the collator: no wait.
        * `inputs_embeds` ``(B, L, d)`` in place of the glyph vectors; then no glyph skips are added.

        Args:
            attention_mask: ``(B, L)``, 1 for tokens and 0 for padding; default all 1.
            token_type_ids: ``(B, L)``, 0 or 1; default 0.
            position_ids: ``(B, L)``; default 0, 1, 2, ...

        Raises:
            ValueError: none or several of the three forms, an empty batch, nothing but padding, more
                than `config.max_position_embeddings` tokens, or an id that is no atlas row. (What only the
                values can tell is checked on the CPU, and where `input_ids` are given.)
        """
        if sum(x is not None for x in (input_ids, glyph_ids, inputs_embeds)) != 1:
            raise ValueError("give exactly one of input_ids, glyph_ids (with glyph_index), inputs_embeds")
        glyphs: GlyphVectors | None = None
        if inputs_embeds is None:
            if input_ids is not None:
                self._check_shape(input_ids.shape)
                glyph_ids, glyph_index = torch.unique(input_ids, return_inverse=True)
            if glyph_ids is None or glyph_index is None:
                raise ValueError("glyph_ids and glyph_index go together: give both")
            self._check_shape(glyph_index.shape)
            self._check_ids(glyph_ids, on_any_device=input_ids is not None)
            glyphs = self.hanglyph(glyph_ids, self.glyph_table.bitmaps)
            # Dropout comes after the gather, so that each token draws its own.
            inputs_embeds = self.dropout(F.embedding(glyph_index, glyphs.vector))
        else:
            self._check_shape(inputs_embeds.shape[:-1])
        on_cpu = attention_mask is not None and attention_mask.device.type == "cpu"
        if attention_mask is not None and on_cpu and not _compiling() and not attention_mask.any():
            raise ValueError("attention_mask is all 0: the batch holds nothing but padding")

        hidden_states = self._embed(inputs_embeds, token_type_ids, position_ids)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask)
        skips = (glyphs.skip1, glyphs.skip2) if glyphs is not None else ()
        for block, skip in zip(self.blocks, (*skips, *[None] * len(self.blocks)), strict=False):
            index = None if skip is None else glyph_index
            hidden_states = block(hidden_states, mask, skip, index, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _embed(self, inputs_embeds: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        length = inputs_embeds.shape[1]
        positions = (
            self.position_embeddings.weight[:length] if position_ids is None else self.position_embeddings(position_ids)
        )
        segments = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        # Autocast would leave float32 here, and every add-norm and linear layer after it would move twice the bytes.
        normed = self.embedding_norm(inputs_embeds + positions + segments).to(inputs_embeds.dtype)
        return self.dropout(normed)

    def _check_shape(self, shape: torch.Size) -> None:
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"the batch has shape {tuple(shape)}; it must be (batch, length), neither of them 0")
        if shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {shape[1]} tokens is longer than the model's "
                f"{self.config.max_position_embeddings}; truncate it (tokenizer(..., truncation=True))"
            )

    def _check_ids(self, glyph_ids: Tensor, on_any_device: bool) -> None:
        if _compiling() or not (on_any_device or glyph_ids.device.type == "cpu"):
            return
        low, high = glyph_ids.aminmax()
        if low == high == self.config.pad_token_id:
            raise ValueError("the batch holds nothing but padding")
        if low < 0 or high >= len(self.glyph_table.bitmaps):
            bad = int(low) if low < 0 else int(high)
            raise ValueError(
                f"token id {bad} is no row of the model's atlas (0 to {len(self.glyph_table.bitmaps) - 1}); "
                "use the tokenizer that was saved with this model"
            )


def _compiling() -> bool:
    # Looking at values would break the graph.
    return torch.compiler.is_compiling()

"""GlyphCRMModel: HanGlyph on the distinct characters of a batch, then the encoder over all tokens."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError
from glyphcrm.modeling.attention import implementation
from glyphcrm.modeling.encoder import EncoderBlock
from glyphcrm.modeling.glyph_vectors.cache import GlyphCache
from glyphcrm.modeling.hanglyph import GlyphTable, GlyphVectors, HanGlyph, distinct
from glyphcrm.modeling.packed_attention import Sequences, is_traced, sequence_numbers
from glyphcrm.modeling.packing import find_packing, first_states, only_first, row_of_sequences
from glyphcrm.modeling.positions import PositionEmbedding
from glyphcrm.modeling.pretrained import GlyphCRMPreTrainedModel

# Glyphs over which features are whitened; the most frequent characters stand first in an atlas.
WHITENING_SAMPLE = 1536  # characters, and four thirds of the features where these are more

# input_ids, glyph_ids, glyph_index, glyph_vectors: the forms of `GlyphCRMModel.forward`
Characters = tuple[Tensor | None, Tensor | None, Tensor | None, GlyphVectors | None]


@dataclass
class GlyphCRMModelOutput(BaseModelOutputWithPooling):
    """As transformers'; with `first_token_only` also the states ``(B, d)`` of the sequences' first tokens."""

    first_states: Tensor | None = None


class GlyphCRMModel(GlyphCRMPreTrainedModel):
    """The encoder without heads: token ids (or prepared distinct glyphs) to hidden states.

    With a pooler, `pooler_output` ``(B, d)`` is ``tanh(W h + b)`` of the state of [CLS], which pre-training has trained
    to tell whether sentences follow each other. A model that is loaded has one if the checkpoint has the weights.

    Args:
        add_pooling_layer: whether there is a pooler; None for one that `from_pretrained` takes away again where the
            checkpoint lacks its weights, since random ones would say nothing.
    """

    nsp: nn.ModuleDict | None

    def __init__(self, config: GlyphCRMConfig, add_pooling_layer: bool | None = False) -> None:
        super().__init__(config)
        self.glyph_table = GlyphTable(config)
        self.hanglyph = HanGlyph(config)
        self.position_embeddings = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
        # By the name that its weights have in the next-sentence head.
        pooler = {"pooler": nn.Linear(config.hidden_size, config.hidden_size)}
        self.nsp = None if add_pooling_layer is False else nn.ModuleDict(pooler)
        self.may_lack_pooler = add_pooling_layer is None
        self.gradient_checkpointing = False
        self.glyph_cache = GlyphCache()
        self.is_drawn = False  # once a picture with ink has been seen
        self.rows: dict[str, int] = {}  # of each token; empty until `vocabulary` is asked for
        self.subfolder = ""  # of what the model was loaded from
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of all GlyphCRM models; `add_pooling_layer` as in the constructor, but None if it is not given."""
        return super().from_pretrained(*args, **{"add_pooling_layer": None, **kwargs})

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        # What transformers calls before it warns of weights that are missing.
        lacking = {name for name in loading_info.missing_keys if name.startswith("nsp.")}
        if lacking and self.may_lack_pooler:
            self.nsp = None
            loading_info.missing_keys -= lacking
        super()._adjust_missing_and_unexpected_keys(loading_info)

    def frequent_rows(self) -> Tensor:
        """Return the atlas rows over which features are whitened, int64."""
        # Row 0 is the blank [PAD]; the rows after the specials are the most frequent characters.
        bitmaps = self.glyph_table.bitmaps
        most = max(WHITENING_SAMPLE, self.hanglyph.vector.in_features * 4 // 3)
        return torch.arange(1, min(len(bitmaps), most), device=bitmaps.device)

    def load_glyph_vectors(self, path: Path) -> None:
        """Use the vectors of a file of `glyphcrm atlas encode` at inference; warn if it doesn't fit the weights."""
        try:
            self.glyph_cache.load(path, self.hanglyph, self.glyph_table.bitmaps)
        except ValueError as error:
            warnings.warn(f"{path} is not used: {error}; `glyphcrm atlas encode` makes it anew", stacklevel=3)

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch; training needs the memory of the glyph cache, and is about to make it wrong."""
        if mode:
            self.glyph_cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # What `.to()`, `.half()`, `.cuda()` come down to: the old memory is to be freed.
        self.glyph_cache.clear()
        return super()._apply(*args, **kwargs)

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
        first_token_only: bool = False,
        glyph_vectors: GlyphVectors | None = None,
        token_index: Tensor | None = None,
        **kwargs: Any,
    ) -> GlyphCRMModelOutput:
        """Return the last hidden states ``(B, L, d)``, and with a pooler `pooler_output` ``(B, d)``, or ``(S, d)``.

        The characters come in one of four forms, with or without `input_ids` beside the second and the third:

        * `input_ids` ``(B, L)`` int64. Their distinct values are found here, for which a GPU is waited for.
        * `glyph_ids` ``(U,)`` and `glyph_index` ``(B, L)`` int64 with
          ``input_ids == glyph_ids[glyph_index]``, prepared by the collator: no wait.
        * `glyph_vectors`, each ``(U, d)``, that HanGlyph made before (for several batches, see `SharedGlyphs`), and
          `glyph_index`, each token's row in them.
        * `inputs_embeds` ``(B, L, d)`` in place of the glyph vectors; then no glyph skips are added.

        In evaluation mode and without gradients, glyph vectors are kept for later batches (see `GlyphCache`), unless
        `config.glyph_cache` is False. Padding costs no work where `find_packing` finds that it can be left out; its
        states are then 0, else they are arbitrary.

        A caller may pack the batch: one row ``(1, T)`` of any length that holds S sequences one after the other, with
        `cu_seq_lens_q`, and the arguments that transformers puts beside it, if at hand (see `row_of_sequences`). Each
        sequence then attends to itself alone, and states are those of the row.

        Args:
            attention_mask: ``(B, L)``, 1 for tokens and 0 for padding; default all 1. A packed row takes none.
            token_type_ids: ``(B, L)``, 0 or 1; default 0.
            position_ids: ``(B, L)``; default 0, 1, 2, ..., in each sequence.
            first_token_only: `first_states` ``(B, d)``, or ``(S, d)``, are wanted. The last block then computes no
                others and the last hidden states are ``(B, 1, d)``; but all of them if states are recorded or the
                caller packed the batch.
            token_index: ``(T,)`` int64, rising: where the flattened `attention_mask` is 1, at least once in each row.
                From the collator: a GPU can then leave the padding out without being waited for.

        Raises `ValueError`: none or several of the four forms, an empty batch, nothing but padding, a sequence of more
        than `config.max_position_embeddings` tokens, a position beyond, or an id that is no atlas row. (What only the
        values can tell is checked on the CPU, and where the distinct `input_ids` are found.)
        """
        characters = (input_ids, glyph_ids, glyph_index, glyph_vectors)
        is_packed = kwargs.get("cu_seq_lens_q") is not None
        shape = self._check_batch(characters, inputs_embeds, attention_mask, position_ids, is_packed)
        row = self._packed_row(shape, attention_mask, kwargs)
        glyphs, tokens = self._glyphs(*characters) if inputs_embeds is None else (None, inputs_embeds)

        # Recorded states have all positions; and a caller may have packed the batch.
        is_whole = row is not None or any(
            kwargs.get(name, getattr(self.config, name, False))
            for name in ("output_hidden_states", "output_attentions")
        )
        packing = None
        if not is_whole:
            is_waited_for = glyphs is not None and glyph_index is None  # to find the distinct characters
            packing = find_packing(attention_mask, tokens, self.config, token_index, is_waited_for, self._query_dtype())
        if packing is not None:
            position_ids = packing.positions() if position_ids is None else packing.pack(position_ids)
            token_type_ids, tokens = packing.pack(token_type_ids), cast(Tensor, packing.pack(tokens))
            kwargs |= packing.attention_arguments(packing)
        elif row is not None:
            kwargs |= row._asdict()
            if position_ids is None:
                places = torch.arange(shape[1], device=tokens.device)
                position_ids = (places - row.cu_seq_lens_q[sequence_numbers(row.cu_seq_lens_q, shape[1])]).unsqueeze(0)

        states = self._embed(tokens, glyphs, token_type_ids, position_ids)
        mask = None if packing is not None else self._mask(states, attention_mask, row, kwargs)
        skips = [] if glyphs is None else [(glyphs.skip1, tokens), (glyphs.skip2, tokens)]
        none = [(None, None)] * (len(self.blocks) - len(skips))
        *others, (last, last_skip) = zip(self.blocks, [*skips, *none][: len(self.blocks)], strict=True)
        for block, skip in others:
            states = block(states, mask, *skip, **kwargs)

        positions = None
        if first_token_only and not is_whole:
            positions, mask, packing, lengths = only_first(attention_mask, mask, packing, states)
            kwargs |= lengths
        states = last(states, mask, *last_skip, positions, **kwargs)
        if packing is not None:
            states = packing.unpack(states)
        if not first_token_only and self.nsp is None:
            return GlyphCRMModelOutput(states)
        starts = None if row is None else row.cu_seq_lens_q
        first = first_states(states, attention_mask, starts) if positions is None else states[:, 0]
        pooled = None if self.nsp is None else torch.tanh(self.nsp["pooler"](first))
        return GlyphCRMModelOutput(states, pooled, first_states=first if first_token_only else None)

    def _query_dtype(self) -> torch.dtype:
        weight = self.embedding_norm.weight  # not the first parameter: a replica (torch.nn.DataParallel) has none
        is_cast = weight.is_cuda and torch.is_autocast_enabled("cuda")
        return torch.get_autocast_dtype("cuda") if is_cast else weight.dtype

    def _packed_row(
        self, shape: tuple[int, int], attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Sequences | None:
        """Take the arguments of a row that the caller has packed out of `kwargs`, and return its sequences."""
        given = {name: kwargs.pop(name) for name in Sequences._fields if kwargs.get(name) is not None}
        if "cu_seq_lens_q" not in given:
            if given:
                raise ValueError(f"{', '.join(given)}: of a packed row, give cu_seq_lens_q as well")
            return None
        if attention_mask is not None:
            raise ValueError("a packed row takes no attention_mask; let cu_seq_lens_q say where its sequences start")
        return row_of_sequences(shape, self.config.max_position_embeddings, **given)

    def _mask(
        self, states: Tensor, attention_mask: Tensor | None, row: Sequences | None, kwargs: dict[str, Any]
    ) -> Any:
        """Return what the attention implementation takes as its mask; None where `row` tells it all."""
        config = self.config
        name = implementation(config, kwargs)
        if name != config._attn_implementation:
            config = copy.copy(config)
            config._attn_implementation_internal = name
        if row is None:
            if attention_mask is None and name in ("eager", "sdpa"):
                return None
            if attention_mask is not None and name == "sdpa" and states.device.type != "cpu":
                # transformers asks the device whether the mask masks anything, and the host waits for the answer.
                mask = attention_mask.to(states.device)
                return mask[:, None, None] != 0 if mask.dim() == 2 else mask
            return create_bidirectional_mask(config=config, inputs_embeds=states, attention_mask=attention_mask)
        if name == "sdpa" or is_flash_attention_requested(config):
            return None
        numbers = sequence_numbers(row.cu_seq_lens_q, states.shape[1]).unsqueeze(0)
        inside = packed_sequence_mask_function(numbers)
        return create_bidirectional_mask(
            config=config, inputs_embeds=states, attention_mask=None, and_mask_function=inside
        )

    def _glyphs(
        self,
        input_ids: Tensor | None,
        glyph_ids: Tensor | None,
        glyph_index: Tensor | None,
        glyph_vectors: GlyphVectors | None,
    ) -> tuple[GlyphVectors, Tensor]:
        """Return glyph vectors and skips, and for each token its row in them, ``(B, L)`` int64."""
        if glyph_vectors is not None:
            return glyph_vectors, cast(Tensor, glyph_index)
        bitmaps = self.glyph_table()
        self._check_drawn(bitmaps)
        if self.config.glyph_cache and not self.training and not torch.is_grad_enabled() and not is_traced():
            rows = cast(Tensor, input_ids if glyph_ids is None else glyph_ids)
            self._check_ids(rows, on_any_device=glyph_ids is None and not self.glyph_cache.is_complete())
            kept = self.glyph_cache.vectors(self.hanglyph, bitmaps, rows)
            if kept is not None:
                return kept, rows if glyph_ids is None else rows[cast(Tensor, glyph_index)]
        if found_here := glyph_ids is None:
            glyph_ids, glyph_index = distinct(cast(Tensor, input_ids))
        self._check_ids(glyph_ids, on_any_device=found_here)
        return self.hanglyph(*self.glyph_table.pictures(glyph_ids, bitmaps)), cast(Tensor, glyph_index)

    def _embed(
        self, tokens: Tensor, glyphs: GlyphVectors | None, token_type_ids: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        """Return what block 0 reads; `tokens` are rows of `glyphs` ``(B, L)``, or without them embeddings."""
        # Dropout comes after the gather, so that each token draws its own.
        embeds = tokens if glyphs is None else self.dropout(F.embedding(tokens, glyphs.vector))
        positions, segments = self.position_embeddings, self.token_type_embeddings
        # Called, not indexed: their weights may be offloaded, and arrive when they are called.
        counted = torch.arange(embeds.shape[1], device=embeds.device)
        position = positions(counted if position_ids is None else position_ids)
        segment = segments(counted.new_zeros(1) if token_type_ids is None else token_type_ids)
        # Autocast would leave float32 here, and every add-norm and linear layer after it would move twice the bytes.
        return self.dropout(self.embedding_norm(embeds + position + segment).to(embeds.dtype))

    def _check_batch(
        self,
        characters: Characters,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        is_packed: bool,
    ) -> tuple[int, int]:
        """Return B and L."""
        input_ids, glyph_ids, glyph_index, glyph_vectors = characters
        if (glyph_index is None) != (glyph_ids is None and glyph_vectors is None):
            raise ValueError("glyph_ids (or glyph_vectors) and glyph_index go together: give both")
        tokens = input_ids if glyph_index is None else glyph_index
        if sum(x is not None for x in (tokens, inputs_embeds)) != 1 or not (glyph_ids is None or glyph_vectors is None):
            raise ValueError(
                "give exactly one of input_ids, glyph_ids (with glyph_index), glyph_vectors (with glyph_index), "
                "inputs_embeds; input_ids may stand beside the second and the third"
            )
        shape = cast(Tensor, inputs_embeds).shape[:-1] if tokens is None else tokens.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"the batch has shape {tuple(shape)}; it must be (batch, length), neither of them 0")
        most = self.config.max_position_embeddings
        if shape[1] > most and not is_packed:
            raise ValueError(
                f"a sequence of {shape[1]} tokens is longer than the model's {most}; truncate it "
                "(tokenizer(..., truncation=True)), or give cu_seq_lens_q if these are several in a packed row"
            )
        if position_ids is not None and position_ids.device.type == "cpu" and not is_traced():
            low, high = position_ids.aminmax()
            if low < 0 or high >= most:
                raise ValueError(f"position_ids go from {low} to {high}; the model has positions 0 to {most - 1}")
        if attention_mask is not None:
            if attention_mask.dim() not in (2, 4):
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}; it must be (batch, length), or "
                    "(batch, heads or 1, queries or 1, length) to be added to scores, or as bool"
                )
            is_readable = attention_mask.dim() == 2 and attention_mask.device.type == "cpu" and not is_traced()
            if is_readable and not attention_mask.any():
                raise ValueError("attention_mask is all 0: the batch holds nothing but padding")
        return shape[0], shape[1]

    def _check_drawn(self, bitmaps: Tensor) -> None:
        """Raise `UserError` if all pictures are blank; a GPU is waited for once, before the first use."""
        if is_traced() or self.is_drawn or bitmaps.is_meta:
            return
        if not bitmaps.any():
            raise UserError(
                "all pictures of the model are blank, since it was made from a configuration alone: give it an atlas "
                "with set_atlas(), or make it with from_atlas() or from_pretrained()"
            )
        self.is_drawn = True

    def _check_ids(self, glyph_ids: Tensor, on_any_device: bool) -> None:
        if is_traced() or not (on_any_device or glyph_ids.device.type == "cpu"):
            return
        low, high = glyph_ids.aminmax()
        if low == high == self.config.pad_token_id:
            raise ValueError("the batch holds nothing but padding")
        self._check_rows(low, high)

    def _check_rows(self, low: Tensor, high: Tensor) -> None:
        if low < 0 or high >= len(self.glyph_table.bitmaps):
            bad = int(low) if low < 0 else int(high)
            raise UserError(
                f"token id {bad} is no row of the model's atlas (0 to {len(self.glyph_table.bitmaps) - 1}); "
                "use the tokenizer that was saved with this model"
            )

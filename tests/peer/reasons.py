"""What of transformers' tests does not hold for GlyphCRM, and why."""

from __future__ import annotations

NO_TABLE = "characters are read as pictures: there is no embedding table to look into or to replace"

# Test class and test -> the reason. A test that passes all the same, or is not there, fails: then its line goes.
REASONS = {
    ("TestModel", "test_inputs_embeds"): NO_TABLE,
    ("TestModel", "test_inputs_embeds_matches_input_ids"): NO_TABLE,
    ("TestModel", "test_model_get_set_embeddings"): NO_TABLE,
    ("TestModel", "test_load_with_mismatched_shapes"): (
        "a vocabulary of another size changes no shape of the encoder, whose weights do not depend on it"
    ),
    ("TestTokenizer", "test_internal_consistency"): "white space is dropped and does not come back",
    ("TestTokenizer", "test_tokenizer_initialization_with_conflicting_key"): (
        "whatever does not make a tokenizer is a ValueError of one line, not an AttributeError"
    ),
}

"""transformers' tests of a tokenizer."""

from __future__ import annotations

import string
import tempfile
import unittest
from typing import Any

import pytest

from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.classic import TEXT
from tests.peer.mixins import mixin

TokenizerTesterMixin = mixin("test_tokenization_common", "TokenizerTesterMixin")


pytestmark = pytest.mark.slow  # both together take some minutes


class TestTokenizer(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = GlyphCRMTokenizer
    from_pretrained_id: Any = []
    test_rust_tokenizer = False

    @classmethod
    def setUpClass(cls) -> None:
        cls.tmpdirname = tempfile.mkdtemp()
        cls.tokenizers_list: list[Any] = []
        letters = string.digits + string.ascii_letters + string.punctuation
        tokenizer = GlyphCRMTokenizer.from_tokens([*SPECIAL_TOKENS, *letters, *TEXT], cls.tmpdirname)
        tokenizer.save_pretrained(cls.tmpdirname)

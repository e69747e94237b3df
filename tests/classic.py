"""The text of the small atlas that several test folders share."""

from glyphcrm.tokens import SPECIAL_TOKENS

# The beginning of the Thousand Character Classic, and five characters that the model can only read.
TEXT = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈。，"
READ_ONLY = "龘䶮靐齉爨"
VOCABULARY_SIZE = len(SPECIAL_TOKENS) + len(TEXT)

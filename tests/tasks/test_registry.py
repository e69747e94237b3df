"""The published sets, as small files of the same form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glyphcrm.errors import UserError
from glyphcrm.tasks import TASKS, Kind, Splits, find_task, load_splits, seen_in_train
from glyphcrm.tasks.published_sets import TOUTIAO_CLASSES

PUBLISHED = [name for name in TASKS if not name.startswith("demo_")]


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tagged(*sentences: str) -> str:
    """ "江泽民|北京" tags what stands between bars as a person."""
    blocks = []
    for sentence in sentences:
        name, _, rest = sentence.partition("|")
        tags = ["B-PER", *["I-PER"] * (len(name) - 1), *["O"] * len(rest)]
        blocks.append("\n".join(f"{c}\t{t}" for c, t in zip(name + rest, tags, strict=True)) + "\n")
    return "\n".join(blocks)


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.dev), len(splits.test)


def load(name: str, data: Path) -> Splits:
    return load_splits(find_task(name), data)


def test_recipes_are_the_papers() -> None:
    assert len(PUBLISHED) == 10  # nine in the paper, which counts THUCNews once
    for name in PUBLISHED:
        task = TASKS[name]
        assert task.name == name
        assert task.learning_rate == (2e-5 if name in ("chnsenticorp", "hotel", "eprstmt") else 3e-5)
    assert all((task.metric == "f1") == (task.kind is Kind.TAGGING) for task in TASKS.values())
    with pytest.raises(UserError, match=r"no task is named 'imdb'; there are chnsenticorp, hotel, .*demo_ner"):
        find_task("imdb")


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_files_say_where_they_can_be_had(tmp_path: Path, name: str) -> None:
    (tmp_path / TASKS[name].folder).mkdir()
    with pytest.raises(UserError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert TASKS[name].source in message and ("lacks" in message or "has no" in message) and "\n" not in message


def test_chnsenticorp(tmp_path: Path) -> None:
    folder = tmp_path / "chnsenticorp"
    write(folder / "train.tsv", "label\ttext_a", '1\t"很好', "0\t差", "0\t 一般", "1\t一般")
    write(folder / "dev.tsv", "qid\tlabel\ttext_a", "0\t1\t好")
    write(folder / "test.tsv", "label\ttext_a", "0\t差", "1\t不错")
    for data in (tmp_path, folder):  # the folder of the task folders, or the task's own
        splits = load("chnsenticorp", data)
        assert sizes(splits) == (4, 1, 2)
        assert splits.labels == ("negative", "positive")
        assert [e.label for e in splits.test] == ["negative", "positive"]
        assert seen_in_train(splits) == {0}
        assert "train also holds 1 of the 2 test texts" in splits.notes
    write(folder / "test.tsv", "label\ttext_a", "0\t差", "2\t不错")
    with pytest.raises(UserError, match=r"test\.tsv:3: unknown label '2'; known are '0', '1'"):
        load("chnsenticorp", tmp_path)


def test_hotel_is_split_per_label(tmp_path: Path) -> None:
    rows = [f"1\t好{i}" for i in range(60)] + [f"0\t差{i}" for i in range(30)]
    write(tmp_path / "hotel" / "reviews.tsv", "label\ttext_a", *rows)
    splits = load("hotel", tmp_path)
    assert sizes(splits) == (72, 9, 9)
    assert [sum(e.label == "positive" for e in part) for part in (splits.train, splits.dev, splits.test)] == [48, 6, 6]
    write(tmp_path / "hotel" / "reviews.tsv", "label\ttext_a", *rows, *(row + "\u3000" for row in rows))
    splits = load("hotel", tmp_path)
    assert sizes(splits) == (144, 18, 18) and not seen_in_train(splits)
    assert any("90 of 180" in note for note in splits.notes)
    write(tmp_path / "hotel" / "more.tsv", "label\ttext_a")
    with pytest.raises(UserError, match=r"has 2 \.tsv files"):
        load("hotel", tmp_path)


def test_cnli(tmp_path: Path) -> None:
    rows = [
        "A1\t人在跑步。\t人在动。\tentailment",
        "A2\t人在跑步。\t人在睡。\tcontradiction",
        "A3\t人在跑步。\t天晴。\tneutral",
    ]
    for part in ("train", "dev", "test"):
        write(tmp_path / "cnli" / f"{part}.tsv", *rows)
    splits = load("cnli", tmp_path)
    assert (splits.train[0].text, splits.train[0].pair) == ("人在跑步。", "人在动。")
    assert splits.notes[0] == "train has 3 examples of the 90,000 published"
    assert seen_in_train(splits) == {0, 1, 2}


def test_thucnews_titles_with_and_without_train(tmp_path: Path) -> None:
    folder = tmp_path / "thucnews_titles"
    write(folder / "dev.txt", *(f"标题{i}\t{i % 10}" for i in range(200)))
    write(folder / "test.txt", *(f"新闻{i}\t{i % 10}" for i in range(20)))
    splits = load("thucnews_titles", tmp_path)
    assert sizes(splits) == (180, 20, 20)
    assert sum(e.label == "finance" for e in splits.dev) == 2 and splits.labels[0] == "finance"
    write(folder / "train.txt", *(f"训练{i}\t{i % 10}" for i in range(30)))
    assert sizes(load("thucnews_titles", tmp_path)) == (30, 200, 20)


def test_thucnews_documents_whole_or_the_validation_part(tmp_path: Path) -> None:
    folder = tmp_path / "cnews_sample"
    for part, count in (("train", 50), ("val", 40), ("test", 30)):
        rows = [f"{label}\t{part}正文{i}" for i in range(count) for label in ("体育", "财经")]
        write(folder / f"cnews.{part}.txt", *rows)
    splits = load("thucnews_documents", tmp_path)
    assert sizes(splits) == (100, 80, 60)
    (folder / "cnews.train.txt").unlink()
    splits = load("thucnews_documents", tmp_path)
    assert sizes(splits) == (64, 8, 8)
    assert "the set has 80 examples of the 65,000 published" in splits.notes


def test_toutiao_in_both_forms_without_repeats(tmp_path: Path) -> None:
    folder = tmp_path / "toutiao"
    codes = list(TOUTIAO_CLASSES)
    rows = [f"7_!_{codes[i % 15]}_!_news_x_!_标题{i}_!_词,词" for i in range(300)]
    write(folder / "toutiao_cat_data.dev.txt", *rows[:200])
    write(folder / "toutiao_cat_data.test.txt", *rows[150:])  # 50 repeat
    write(folder / "toutiao_test.txt", "标题0_!_0", "标 题1_!_0", *(f"句{i}_!_{i % 15}" for i in range(150)))
    splits = load("toutiao", tmp_path)
    assert sum(sizes(splits)) == 450 and sizes(splits) == (360, 45, 45)
    assert splits.labels == tuple(TOUTIAO_CLASSES.values())
    assert any("52 of 502, 1 of them with another label" in note for note in splits.notes)
    everything = {e.text: e.label for part in (splits.train, splits.dev, splits.test) for e in part}
    assert everything["标题14"] == everything["句14"] == "game" and everything["标题1"] == "culture"
    write(folder / "toutiao_cat_data.txt", *rows)
    assert sum(sizes(load("toutiao", tmp_path))) == 300
    write(folder / "toutiao_cat_data.txt", *rows, "7_!_100_!_news_x_!_标题")
    with pytest.raises(UserError, match=r"toutiao_cat_data\.txt:301: 4 columns, expected 5 separated by '_!_'"):
        load("toutiao", tmp_path)


def test_cmssm_keeps_the_pairs_of_a_question_together(tmp_path: Path) -> None:
    rows = [f'{i},病,"问题{i // 5},是吗",第{i}问,{i % 5 % 2}' for i in range(200)]
    write(tmp_path / "cmssm" / "train.csv", "id,category,query1,query2,label", *rows)
    write(tmp_path / "cmssm" / "dev.csv", "id,category,query1,query2,label", "0,病,甲,乙,1", "1,病,甲,丙,0")
    splits = load("cmssm", tmp_path)
    assert sizes(splits) == (180, 20, 2)
    assert splits.test[0].label == "same" and splits.test[0].pair == "乙"
    assert not {e.text for e in splits.train} & {e.text for e in splits.dev}
    assert splits.train[0].text.endswith(",是吗")


def test_eprstmt(tmp_path: Path) -> None:
    for part, texts in (("train_few_all", "好坏"), ("dev_few_all", "优劣"), ("test_public", "佳差")):
        rows = [
            json.dumps({"id": 0, "sentence": text, "label": label})
            for text, label in zip(texts, ("Positive", "Negative"), strict=True)
        ]
        write(tmp_path / "eprstmt" / f"{part}.json", *rows)
    splits = load("eprstmt", tmp_path)
    assert sizes(splits) == (2, 2, 2) and splits.notes == ()
    assert [e.label for e in splits.test] == ["positive", "negative"]


@pytest.mark.parametrize("names", [("train.txt", "test.txt"), ("msra_train_bio.txt", "msra_test_bio.txt")])
def test_msra_ner(tmp_path: Path, names: tuple[str, str]) -> None:
    stray = "中\tI-PER\n国\tO\n"
    write(tmp_path / "msra_ner" / names[0], tagged(*(f"江泽民|去{i}" for i in range(20))), stray)
    write(tmp_path / "msra_ner" / names[1], tagged("江泽民|去7", "李鹏|来"))
    splits = load("msra_ner", tmp_path)
    assert sizes(splits) == (18, 2, 2) and not seen_in_train(splits)
    assert splits.labels == ("O", "B-PER", "I-PER")
    assert "train sentences that test also holds were dropped: 1 of 21" in splits.notes
    assert any(note.endswith(": 1") and "I- tags" in note for note in splits.notes)


@pytest.mark.parametrize("form", ["{}.txt", "example.{}"])
def test_people_ner(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "people_ner"
    for part in ("train", "dev", "test"):
        write(folder / form.format(part), tagged(f"江泽民|在{part}", "李鹏|" + "好" * 20 * (part != "train")))
    splits = load("people_ner", tmp_path)
    assert sizes(splits) == (2, 2, 2)
    assert "no train sentence is longer than 9 characters, and test has 22" in splits.notes[0]
    write(folder / form.format("train"), tagged("江泽民|在", "李鹏|" + "坏" * 20))
    assert load("people_ner", tmp_path).notes == ()

"""The published sets, each from the files it is published as; what was decided on the way goes into the notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from glyphcrm.errors import UserError
from glyphcrm.tasks.examples import MissingFilesError, Splits, TextExample
from glyphcrm.tasks.readers import Columns, read_bio, read_columns, read_csv, read_json_lines
from glyphcrm.tasks.splits import deduplicated, identity, repeats_note, split, tagged_splits

Reader = Callable[[Path, Columns, Mapping[str, str]], list[TextExample]]

POLARITIES = {"0": "negative", "1": "positive"}
RELATIONS = {name: name for name in ("entailment", "neutral", "contradiction")}
SIMILARITIES = {"0": "different", "1": "same"}
REVIEW_POLARITIES = {"Negative": "negative", "Positive": "positive"}
TITLE_CLASSES = ["finance", "realty", "stocks", "education", "science", "society", "politics"]
TITLE_CLASSES += ["sports", "game", "entertainment"]
DOCUMENT_CLASSES = ["体育", "财经", "房产", "家居", "教育", "科技", "时尚", "时政", "游戏", "娱乐"]
_TOUTIAO_CODES = [code for code in range(100, 117) if code not in (105, 111)]
_TOUTIAO_NAMES = ["story", "culture", "entertainment", "sports", "finance", "house", "car", "edu", "tech", "military"]
_TOUTIAO_NAMES += ["travel", "world", "stock", "agriculture", "game"]
TOUTIAO_CLASSES = dict(zip(map(str, _TOUTIAO_CODES), _TOUTIAO_NAMES, strict=True))  # or numbers from 0 in this order
PUBLISHED_CNLI_TRAIN = 90_000
PUBLISHED_TITLES_TRAIN = 180_000
PUBLISHED_DOCUMENTS = 65_000
PUBLISHED_TOUTIAO = 382_688
THREE_TABLES = ("train.tsv", "dev.tsv", "test.tsv")

_SPLIT_NOTE = "the set has no official split: 0.8/0.1/0.1 of each label, drawn with a fixed seed"
_NO_DEV_NOTE = "the set has no dev part: a tenth of train, drawn with a fixed seed, is dev here"


def read_chnsenticorp(folder: Path) -> Splits:
    """Read train.tsv, dev.tsv and test.tsv with a header that names `label` and `text_a`."""
    return _text_splits(_read(folder, Columns("text_a", "label"), POLARITIES, THREE_TABLES), POLARITIES)


def read_hotel(folder: Path) -> Splits:
    """Read the one .tsv file, with a header that names `label` and `text_a`, and split it."""
    files = sorted(folder.glob("*.tsv"))
    if not files:
        raise MissingFilesError(f"{folder} has no .tsv file")
    if len(files) > 1:
        raise UserError(
            f"{folder} has {len(files)} .tsv files, {files[0].name} and others; leave the one with the reviews"
        )
    examples = read_columns(files[0], Columns("text_a", "label"), POLARITIES)
    notes = (_SPLIT_NOTE, *repeats_note(examples))
    return _text_splits(split(examples), POLARITIES, notes)


def read_cnli(folder: Path) -> Splits:
    """Read train.tsv, dev.tsv and test.tsv of four columns: id, premise, hypothesis, label; no header."""
    parts = _read(folder, Columns(text=1, label=3, pair=2), RELATIONS, THREE_TABLES)
    return _text_splits(parts, RELATIONS, _fewer("train", len(parts[0]), PUBLISHED_CNLI_TRAIN))


def read_titles(folder: Path) -> Splits:
    """Read train.txt, dev.txt and test.txt, or the last two alone: title, tab, number of the class."""
    labels = {str(number): name for number, name in enumerate(TITLE_CLASSES)}
    choices = ("train.txt", "dev.txt", "test.txt"), ("dev.txt", "test.txt")
    parts = _read(folder, Columns(text=0, label=1), labels, *choices)
    if len(parts) == 3:
        return _text_splits(parts, labels, _fewer("train", len(parts[0]), PUBLISHED_TITLES_TRAIN))
    train, dev, _ = split(parts[0], test=0)
    notes = (
        f"there is no train.txt (of {PUBLISHED_TITLES_TRAIN:,} titles): nine tenths of dev.txt are train here, "
        "and a tenth of each label, drawn with a fixed seed, is dev",
    )
    return _text_splits((train, dev, parts[1]), labels, notes)


def read_documents(folder: Path) -> Splits:
    """Read cnews.train.txt, cnews.val.txt and cnews.test.txt, or split the second if alone: class, tab, document."""
    labels = {name: name for name in DOCUMENT_CLASSES}
    choices = ("cnews.train.txt", "cnews.val.txt", "cnews.test.txt"), ("cnews.val.txt",)
    parts = _read(folder, Columns(text=1, label=0), labels, *choices)
    notes = _fewer("the set", sum(map(len, parts)), PUBLISHED_DOCUMENTS)
    if len(parts) > 1:
        return _text_splits(parts, labels, notes)
    notes = (*notes, f"there is cnews.val.txt alone: {_SPLIT_NOTE.partition(': ')[2]}", *repeats_note(parts[0]))
    return _text_splits(split(parts[0]), labels, notes)


def read_toutiao(folder: Path) -> Splits:
    """Read the titles, drop what repeats, and split.

    The whole set is one file, toutiao_cat_data.txt; what circulates otherwise is toutiao_cat_data.dev.txt,
    toutiao_cat_data.test.txt (id_!_code_!_class_!_title_!_keywords all) and toutiao_test.txt (title_!_number).
    """
    numbers = {str(number): name for number, name in enumerate(TOUTIAO_CLASSES.values())}
    files = _files(
        folder,
        ("toutiao_cat_data.txt",),
        ("toutiao_cat_data.dev.txt", "toutiao_cat_data.test.txt", "toutiao_test.txt"),
    )
    examples: list[TextExample] = []
    for path in files:
        numbered = path.name == "toutiao_test.txt"
        form = (Columns(text=0, label=1), numbers) if numbered else (Columns(text=3, label=1), TOUTIAO_CLASSES)
        examples += read_columns(path, *form, "_!_")
    distinct, dropped = deduplicated(examples)
    notes = (*_fewer("the set", len(distinct), PUBLISHED_TOUTIAO), *dropped, _SPLIT_NOTE)
    return _text_splits(split(distinct), TOUTIAO_CLASSES, notes)


def read_cmssm(folder: Path) -> Splits:
    """Read train.csv and dev.csv with a header that names `query1`, `query2` and `label`."""
    columns = Columns("query1", "label", "query2")
    learnt, test = _read(folder, columns, SIMILARITIES, ("train.csv", "dev.csv"), read=read_csv)
    train, dev, _ = split(learnt, test=0)
    notes = (
        "the labels of the official test set are not public: the test set here is the official dev set",
        f"dev is a tenth of train, drawn with a fixed seed; pairs with the same first question stay together "
        f"({len(train):,} and {len(dev):,} pairs)",
    )
    return _text_splits((train, dev, test), SIMILARITIES, notes)


def read_eprstmt(folder: Path) -> Splits:
    """Read train_few_all.json, dev_few_all.json and test_public.json: JSON lines with `sentence` and `label`."""
    names = ("train_few_all.json", "dev_few_all.json", "test_public.json")
    parts = _read(folder, Columns("sentence", "label"), REVIEW_POLARITIES, names, read=read_json_lines)
    return _text_splits(parts, REVIEW_POLARITIES)


def read_msra_ner(folder: Path) -> Splits:
    """Read train.txt and test.txt in BIO columns; drop the test sentences from train, and split off dev."""
    train, test = map(read_bio, _files(folder, ("train.txt", "test.txt"), ("msra_train_bio.txt", "msra_test_bio.txt")))
    tested = {identity(example) for example in test}
    unseen = [example for example in train if identity(example) not in tested]
    train_part, dev_part, _ = split(unseen, test=0)
    notes = [_NO_DEV_NOTE]
    if dropped := len(train) - len(unseen):
        notes.append(f"train sentences that test also holds were dropped: {dropped:,} of {len(train):,}")
    return tagged_splits((train_part, dev_part, test), notes)


def read_people_ner(folder: Path) -> Splits:
    """Read train.txt, dev.txt and test.txt, or example.train, example.dev and example.test, in BIO columns."""
    choices = ("train.txt", "dev.txt", "test.txt"), ("example.train", "example.dev", "example.test")
    train, dev, test = map(read_bio, _files(folder, *choices))
    longest, tested = (max(len(example.tags) for example in part) for part in (train, test))
    notes = []
    if 2 * longest < tested:
        notes.append(
            f"no train sentence is longer than {longest} characters, and test has {tested}: this train file is not "
            "of the same making as test (a stand-in drawn from MSRA-NER circulates)"
        )
    return tagged_splits((train, dev, test), notes)


def _files(folder: Path, *choices: tuple[str, ...]) -> list[Path]:
    """Return the paths of the first choice of file names that are all in `folder`."""
    for names in choices:
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            return paths
    missing = [name for name in choices[0] if not (folder / name).is_file()]
    raise MissingFilesError(f"{folder} lacks {', '.join(missing)}")


def _read(
    folder: Path, columns: Columns, labels: Mapping[str, str], *choices: tuple[str, ...], read: Reader = read_columns
) -> list[list[TextExample]]:
    return [read(path, columns, labels) for path in _files(folder, *choices)]


def _text_splits(
    parts: Iterable[Iterable[TextExample]], labels: Mapping[str, str], notes: Sequence[str] = ()
) -> Splits:
    train, dev, test = map(tuple, parts)
    return Splits(train, dev, test, tuple(labels.values()), tuple(notes))


def _fewer(what: str, count: int, published: int) -> tuple[str, ...]:
    return (f"{what} has {count:,} examples of the {published:,} published",) if count < published else ()

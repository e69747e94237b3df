"""What only a process of its own can tell: the peak memory of a training step, and start-up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import BertModel, BertTokenizerFast

from bench.environment import ROOT
from bench.throughput.material import Material, sizes
from bench.throughput.models import build_bert, build_glyphcrm, step_on_cpu
from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import bert_config
from glyphcrm.training.freed_memory import keep_freed_memory

# What a user of either writes.
PROGRAM = """
import sys
import torch
{imports}
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1])
with torch.inference_mode():
    states = model(**tokenizer("国家主席发表新年讲话，迈向充满希望的新世纪。", return_tensors="pt")).last_hidden_state
assert states.isfinite().all() and states.shape[:2] == (1, 24), states.shape
"""


class Peak(NamedTuple):
    """Bytes of resident memory: after the imports, before the model is built; and the most that ever was."""

    before: int
    peak: int


def peak_memory(model: str, size: str, atlas: Path, batch: Path) -> Peak:
    """Run the first training step of "glyphcrm" or "bert" in a fresh process, on the batch of a file."""
    command = [sys.executable, "-m", __name__, model, size, str(atlas), str(batch)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Peak(**json.loads(done.stdout))


def write_checkpoints(material: Material, glyphcrm: Path, bert: Path) -> None:
    """Write a GlyphCRM with new weights, as pre-training does, and a BERT of its sizes and vocabulary."""
    name, vocabulary, atlas = material.sizes.started, material.vocabulary, material.atlas
    GlyphCRMForPreTraining.from_atlas(preset(name, vocab_size=vocabulary), atlas).save_pretrained(glyphcrm)
    material.tokenizer.save_pretrained(glyphcrm)
    torch.manual_seed(0)
    BertModel(bert_config(preset(name, vocab_size=vocabulary, num_glyphs=vocabulary))).save_pretrained(bert)
    BertTokenizerFast(vocab={token: i for i, token in enumerate(atlas.tokens[:vocabulary])}).save_pretrained(bert)


def start(checkpoint: Path, imports: str = "") -> None:
    """Import, load the checkpoint and encode a sentence in a fresh process."""
    subprocess.run([sys.executable, "-c", PROGRAM.format(imports=imports), str(checkpoint)], cwd=ROOT, check=True)


def _resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes.

    Not getrusage's ru_maxrss: it is inherited through exec, so that a child of a large process has its parent's peak.
    """
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def main(model: str, size: str, atlas_file: str, batch_file: str) -> None:
    """Take the step and print a `Peak` as JSON."""
    batch, atlas = torch.load(batch_file), GlyphAtlas.load(Path(atlas_file))
    config = sizes(size).configuration(len(atlas))
    before = _resident("VmRSS")
    keep_freed_memory()  # as pretrain.py does
    step_on_cpu(build_glyphcrm(config, atlas) if model == "glyphcrm" else build_bert(config))([batch])
    print(json.dumps({"before": before, "peak": _resident("VmHWM")}))


if __name__ == "__main__":
    main(*sys.argv[1:])

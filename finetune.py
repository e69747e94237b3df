"""Fine-tune GlyphCRM or a BERT on a task: `torchrun --standalone --nproc-per-node=1 finetune.py --help`."""

from glyphcrm.cli.entry import run_command

if __name__ == "__main__":
    raise SystemExit(run_command("finetune"))

"""Fine-tune GlyphCRM or a BERT on a task: `torchrun --standalone --nproc-per-node=1 finetune.py --help`."""

from glyphcrm.cli.finetune import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Pre-train GlyphCRM: `torchrun --standalone --nproc-per-node=1 pretrain.py --help`."""

from glyphcrm.pretraining.run import main

if __name__ == "__main__":
    raise SystemExit(main())

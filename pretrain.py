"""Pre-train GlyphCRM: `torchrun --standalone --nproc-per-node=1 pretrain.py --help`."""

from glyphcrm.training.pretrain import main

if __name__ == "__main__":
    raise SystemExit(main())

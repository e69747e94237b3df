"""Pre-train GlyphCRM: `torchrun --standalone --nproc-per-node=1 pretrain.py --help`."""

from glyphcrm.cli.entry import run_command

if __name__ == "__main__":
    raise SystemExit(run_command("pretrain"))

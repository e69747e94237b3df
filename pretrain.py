"""Pre-train GlyphCRM: `torchrun --standalone --nproc-per-node=1 pretrain.py --help`."""

if __name__ == "__main__":
    try:  # the import takes seconds, in which Ctrl-C may come
        from glyphcrm.cli.entry import run_command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(run_command("pretrain"))

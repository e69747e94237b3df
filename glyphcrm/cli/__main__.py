"""`python -m glyphcrm.cli`, the same as `glyphcrm`."""

from glyphcrm.cli.entry import main

if __name__ == "__main__":
    raise SystemExit(main())

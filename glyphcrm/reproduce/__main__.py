"""`python -m glyphcrm.reproduce`, the same as `glyphcrm reproduce`."""

import sys

from glyphcrm.cli.entry import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))

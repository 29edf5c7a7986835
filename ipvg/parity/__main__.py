"""python -m ipvg.parity [FOLDER] [--stage NAME]: the same as `ipvg parity`."""

import sys

from ..cli import main

sys.exit(main(["parity", *sys.argv[1:]]))

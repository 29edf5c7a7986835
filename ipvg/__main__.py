"""python -m ipvg"""

import sys

from .cli import main

sys.exit(main())

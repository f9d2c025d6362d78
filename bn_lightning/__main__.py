"""`python -m bn_lightning` is the command `bn-lightning`."""

import sys

from bn_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())

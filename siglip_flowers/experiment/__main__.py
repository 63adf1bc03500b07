"""``python -m siglip_flowers.experiment``: the same as ``siglip-flowers experiment``."""

import sys

from siglip_flowers.experiment.command import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m siglip_flowers predict|train|eval``: the same as ``siglip-flowers``."""

import sys

from siglip_flowers.commands.main import main

if __name__ == "__main__":
    sys.exit(main())

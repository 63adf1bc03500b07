"""``python -m siglip_flowers.export``: the same as ``siglip-flowers export``."""

import sys

from siglip_flowers.export.command import main

if __name__ == "__main__":
    sys.exit(main())

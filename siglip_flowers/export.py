"""``python -m siglip_flowers.export``: the same as ``siglip-flowers export``."""

import sys

from siglip_flowers.commands.export import main

if __name__ == "__main__":
    sys.exit(main())

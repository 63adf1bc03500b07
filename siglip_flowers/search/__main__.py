"""``python -m siglip_flowers.search``: the same as ``siglip-flowers search``."""

import sys

from siglip_flowers.search.command import main

if __name__ == "__main__":
    sys.exit(main())

"""Search for good options: ``python -m siglip_flowers.search --config configs/search.yaml``."""

import sys

from siglip_flowers.search.command import main

if __name__ == "__main__":
    sys.exit(main())

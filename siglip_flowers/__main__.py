"""``python -m siglip_flowers predict|train|eval``: the same as ``siglip-flowers``."""

import sys

if __name__ == "__main__":
    try:
        from siglip_flowers.commands.main import main
    except KeyboardInterrupt:
        # Ctrl-C in the first moments.
        sys.exit(130)
    sys.exit(main())

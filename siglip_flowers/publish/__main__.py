"""``python -m siglip_flowers.publish results/my-run --hub_model_id ORG/NAME``."""

import sys

from siglip_flowers.publish.command import main

if __name__ == "__main__":
    sys.exit(main())

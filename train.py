"""Fine-tune SigLIP on Flowers102.

    accelerate launch train.py
    accelerate launch train.py --config configs/nano_64px.yaml --output_dir results/my-run

Writes model, checkpoints, metrics, curves and example predictions to --output_dir.
"""

import sys

from siglip_flowers.commands.train import main

if __name__ == "__main__":
    sys.exit(main())

"""Fine-tune SigLIP on your own images, or on Flowers102.

    python train.py --data_dir images --output_dir results/my-run
    python train.py --config configs/lora.yaml

Writes model, checkpoints, metrics, curves and example predictions to --output_dir.
"""

import sys

if __name__ == "__main__":
    try:
        from siglip_flowers.commands.train import main
    except KeyboardInterrupt:
        # Ctrl-C in the first moments.
        sys.exit(130)
    sys.exit(main())

"""Evaluate a trained classifier on a split.

    python eval.py --split test
    python eval.py --model results/my-run --split validation --output_dir out

Prints accuracy, top-5 accuracy, precision, recall, F1 and loss; see --help for the data options,
which default to those of the model's own run.
"""

import sys

if __name__ == "__main__":
    try:
        from siglip_flowers.commands.eval import main
    except KeyboardInterrupt:
        # Ctrl-C in the first moments.
        sys.exit(130)
    sys.exit(main())

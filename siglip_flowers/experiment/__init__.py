"""Compare options of train.py over arms, regimes and seeds, with statistics."""

"""Search for good options: trials of train.py's options, scored on the validation split."""

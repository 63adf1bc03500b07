"""The search for options: trials of train.py's options, judged on the validation split."""

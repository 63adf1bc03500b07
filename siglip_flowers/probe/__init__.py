"""Linear probe: fit a grid of heads on the features of a frozen encoder."""

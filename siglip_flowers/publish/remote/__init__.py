"""Files that are pushed beside the weights, for machines without this package."""

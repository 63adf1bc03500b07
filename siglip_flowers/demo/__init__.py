"""A page in the browser to try a classifier on images."""

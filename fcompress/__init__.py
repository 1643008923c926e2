"""Make trained networks thinner without retraining, and certify that the labels stay."""

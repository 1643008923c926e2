"""The trials of a recipe: one network each, made in processes, on a cluster or stacked."""

"""The held-out samples of a recipe: which are used, and what a model makes of them."""

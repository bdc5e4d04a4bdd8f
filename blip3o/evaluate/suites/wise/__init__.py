"""WISE: its two prompt lists, its judges, and the parser of a judge's grades. Called by the registry."""

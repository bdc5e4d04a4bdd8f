"""The two data sets that the project makes itself: emoji (real pictures from packages) and scenes (a drawn closed
world); and `imported`, anyone's own.

Each set is a list of samples that is a pure function of its settings, written as WebDataset shards by `writer`.
"""

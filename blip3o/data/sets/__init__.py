"""The two data sets that the project builds: emoji (real pictures from packages) and scenes (a drawn closed world);
and `imported`, for a user's own pictures.

Each set is a list of samples that is a pure function of its settings, written as WebDataset shards by `writer`.
"""

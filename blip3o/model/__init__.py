"""The architecture only: backbone, queries, DiT, encoder and decoder, composed in `unified`.

Modules here know no files, ranks, loss weights, or devices. Training and serving add those from outside.
"""

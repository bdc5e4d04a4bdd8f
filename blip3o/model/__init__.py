"""The architecture and nothing else: backbone, queries, DiT, encoder and decoder, composed in `unified`.

No files, no ranks, no loss weights, no choice of device. Training and serving apply those from outside.
"""

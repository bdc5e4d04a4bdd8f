"""The HTTP API: `forms` (what a request may say), `routes` (what answers it), `safety` (who may ask, and how much).

`serve.api.build_api` puts them together. Nothing here knows Ray or torch.
"""

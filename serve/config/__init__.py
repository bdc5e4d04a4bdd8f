"""How bundles are served, as data: `options.py` for the command line, and Serve configs for clusters as YAML.

The YAML files are for `serve deploy` and `blip3o deploy`; copy one and put your bundle in.
"""

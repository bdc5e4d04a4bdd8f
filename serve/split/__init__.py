"""The split layout: each stage of the engine in processes of its own, and a coordinator that joins them to a backend.

`messages` is what they exchange, `engines` runs one stage by itself, `coordinator` implements `serve.protocol.Backend`
over stages wherever they are, and `local` has them in this process. No Ray, no HTTP; without torch in a coordinator.
"""

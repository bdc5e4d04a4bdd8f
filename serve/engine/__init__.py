"""The engine: the model behind the server, without HTTP and without Ray.

`engine` has `Engine`, whose threads advance all requests, and `local` the backend that the HTTP API calls. `scheduler`
decides, and is pure; `requests` holds the requests that have not ended; `denoise` and `decoding` do the arithmetic.
"""

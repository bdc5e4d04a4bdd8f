"""Attacks a server with many clients at once: `python -m benchmarks.serve_abuse`.

Of 50 clients, 22 ask for images and conversations, as many rows as fill the queue of the replica five times; the others
send malformed requests, leave before the reply, send a head or a body byte by byte, send nothing, or do not read what
they asked for. After a warm-up, the memory of the proxy, the ingress and the replica is read every second. `ratio` is
the largest of their growths, last third over first third: 1 is flat. What no server should answer is counted: 5xx other
than 503, and 429 without `Retry-After`.
"""

"""A small third-party HTTP server: a judge, or a model that does not follow its instructions."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def stranger(answer):
    """Its URL; `answer(path, body)` gives the JSON of a reply to the JSON of a request (None: a GET)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._reply(None)

        def do_POST(self):
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, request):
            body = json.dumps(answer(self.path, request)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Logs nothing."""

    with serving(Handler) as url:
        yield url


@contextmanager
def serving(handler):
    """The URL of a server that answers as a handler does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

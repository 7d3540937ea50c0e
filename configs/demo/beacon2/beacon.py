"""A beacon: the small web service that the demo ships to devices. It would also say where it is."""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SETTINGS = json.loads((Path(__file__).parent / "settings.json").read_text())
PLACE = SETTINGS["place"]  # the bug of this release: nobody put a place into the settings


class Beacon(BaseHTTPRequestHandler):
    """Answers `/` with a greeting and `/health` with the version."""

    def do_GET(self) -> None:
        """Answer one request."""
        body = {"/": SETTINGS["greeting"] + " At " + PLACE, "/health": SETTINGS["version"]}.get(self.path)
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write((body or "not found").encode() + b"\n")

    def log_message(self, *args: object) -> None:
        """Keep the log quiet."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Beacon)
    server.serve_forever(poll_interval=3_600)  # a signal ends it: there is nothing to look for twice a second

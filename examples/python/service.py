#!/usr/bin/env python3
"""A service on this machine with several networks: POST a photo to /NAME, and get JSON of what is in it.

    python3 service.py first=BUNDLE second=BUNDLE [--port 8000]
    curl --data-binary @cat.jpg http://127.0.0.1:8000/first

It listens on loopback: put a server that knows whom it trusts before it for anything else. Needs Pillow for photos.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Bytes of the largest photo, and seconds that a client may take to send it.
MOST, PATIENCE = 16 << 20, 30.0


class Network:
    """A loaded bundle. Requests come on threads of their own; one at a time has the network."""

    def __init__(self, folder: str) -> None:
        from runner import Model

        self.model, self.lock = Model(folder), threading.Lock()

    def look(self, photo: Any) -> dict[str, Any]:
        """What is in a photo, as plain data."""
        with self.lock:
            if self.model.task == "detect":
                return {"boxes": [box._asdict() for box in self.model.detect(photo)]}
            return {"top": [{"label": label, "score": score} for label, score in self.model.classify(photo)]}


def handler(networks: dict[str, Network]) -> type[BaseHTTPRequestHandler]:
    """The class that answers requests with ``networks``."""
    from PIL import Image
    from runner import RunnerError

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def do_POST(self) -> None:
            network = networks.get(self.path.strip("/"))
            length = self.headers.get("Content-Length", "")
            if network is None:
                self.answer(404, {"error": f"no such network; there are {', '.join(networks)}"})
            elif not length.isdigit() or not 0 < int(length) <= MOST:
                self.answer(413, {"error": f"send a photo of at most {MOST} bytes, with its Content-Length"})
            else:
                self.look(network, self.rfile.read(int(length)))

        def look(self, network: Network, data: bytes) -> None:
            try:
                with Image.open(io.BytesIO(data)) as photo:
                    self.answer(200, network.look(photo))
            except (OSError, ValueError, SyntaxError, RunnerError, Image.DecompressionBombError) as error:
                self.answer(400, {"error": str(error) or "not a photo"})

        def answer(self, status: int, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


def serve(folders: dict[str, str], port: int = 8000) -> ThreadingHTTPServer:
    """A server with the bundles in ``folders`` by name; port 0 takes any that is free. ``serve_forever`` starts it."""
    # All bundles of one version have the same runner.
    sys.path.insert(0, next(iter(folders.values())))
    networks = {name: Network(folder) for name, folder in folders.items()}
    return ThreadingHTTPServer(("127.0.0.1", port), handler(networks))


def main(arguments: list[str]) -> None:
    """Parse the command line and serve until interrupted."""
    port = 8000
    if "--port" in arguments[:-1]:
        at = arguments.index("--port")
        port, arguments = int(arguments[at + 1]), arguments[:at] + arguments[at + 2 :]
    folders = dict(argument.partition("=")[::2] for argument in arguments)
    if not folders or not all(folders.values()):
        sys.exit(__doc__)
    server = serve(folders, port)
    print(f"http://127.0.0.1:{server.server_port}: {', '.join(folders)}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main(sys.argv[1:])

"""A web server on this machine, for the code that downloads."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Event, Thread


@contextmanager
def serving(
    contents: Mapping[str, bytes | str],
    announce_more: int = 0,
    hold: Event | Barrier | None = None,
) -> Iterator[str]:
    """Serve contents by name, and send elsewhere for a str; yield the address they are below.

    ``announce_more`` bytes than are sent are announced, as when a connection breaks. The second
    half of what is sent waits for ``hold``: for somebody else to set an event, or for as many
    requests as a barrier has parties.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = contents.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            if isinstance(content, str):
                self.send_response(302)
                self.send_header("Location", content)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + announce_more))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            if hold is not None:
                hold.wait(timeout=60)
            self.wfile.write(content[half:])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

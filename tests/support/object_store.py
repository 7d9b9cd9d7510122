"""An S3 server in this process, and a line to it that is cut when a test says so."""

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import quote

os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET = "bucket"


@dataclass
class Line:
    """A TCP proxy in front of the server. Counts the bytes that come from there, and breaks off when told to."""

    target: int
    cut_after: list[int] = field(default_factory=list)  # bytes after which each of the next connections is cut
    received: int = 0
    cuts: int = 0
    down: bool = False  # connections are refused
    open: list[socket.socket] = field(default_factory=list)

    def cut(self) -> None:
        """Breaks off all connections that there are, whatever they carry."""
        for end in list(self.open):
            self.cuts += 1
            with suppress(OSError):  # closed already
                end.shutdown(socket.SHUT_RDWR)

    def serve(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if self.down:
            client.close()
            return
        upstream = socket.create_connection(("127.0.0.1", self.target))
        self.open.append(client)
        threading.Thread(target=self._pump, args=(client, upstream, False), daemon=True).start()
        self._pump(upstream, client, True)
        self.open.remove(client)

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        left = None
        with suppress(OSError):  # the other side has closed
            while data := source.recv(1 << 16):
                if counted:
                    if left is None and len(data) > 1000 and self.cut_after:  # an answer with content, not only headers
                        left = self.cut_after.pop(0)
                    if left is not None:
                        left -= len(data)
                        if left < 0:
                            self.cuts += 1
                            break
                    self.received += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):  # closed already
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@dataclass
class ObjectStore:
    """A bucket, reached directly or over a line that can be cut."""

    port: int
    line: Line
    line_port: int

    def url(self, path: str, *, over_line: bool = False) -> str:
        """s3://bucket/PATH as pyarrow takes it."""
        endpoint = quote(f"http://127.0.0.1:{self.line_port if over_line else self.port}", safe="")
        return f"s3://{BUCKET}/{path}?endpoint_override={endpoint}&region=us-east-1"


@contextmanager
def refusing(status: int) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that answers everything with `status`, and the requests that it was sent."""
    asked: list[str] = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        do_GET = do_PUT = do_POST = do_HEAD

        def log_message(self, format: str, *values: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ObjectStore(server.server_port, Line(0), 0).url("refused"), asked
        server.shutdown()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with an empty bucket, in this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server._server.server_port
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1").create_bucket(Bucket=BUCKET)
    line = Line(port)
    with socket.create_server(("127.0.0.1", 0)) as front:
        threading.Thread(target=line.serve, args=(front,), daemon=True).start()
        try:
            yield ObjectStore(port, line, front.getsockname()[1])
        finally:
            server.stop()

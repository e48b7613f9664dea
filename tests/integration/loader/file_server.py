"""An HTTP server of files in memory that can be told to misbehave, for tests of the remote tier."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SEND_BYTES = 1 << 18


@dataclass
class Request:
    """What a client asked for."""

    path: str
    headers: dict[str, str]
    begin: int | None
    end: int | None


@dataclass
class Fault:
    """Takes over the answer to GETs of paths that end with `suffix`, for `times` of them, after letting `skip` pass."""

    suffix: str
    answer: Callable[["Handler", Request, bytes], None]
    times: float
    skip: int = 0
    seen: int = 0


@dataclass
class FileServer:
    """`files` by path. ETags are the files' hashes, unless `etags` has another."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str | None] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    bytes_per_second: float = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def fail(
        self, suffix: str, answer: Callable[["Handler", Request, bytes], None], *, times: float = 1, skip: int = 0
    ) -> None:
        self.faults.append(Fault(suffix=suffix, answer=answer, times=times, skip=skip))

    def ranges(self, suffix: str) -> list[tuple[int | None, int | None]]:
        return [(request.begin, request.end) for request in self.requests if request.path.endswith(suffix)]

    def etag_of(self, path: str) -> str | None:
        if path not in self.etags:
            self.etags[path] = f'"{hashlib.sha256(self.files[path]).hexdigest()}"'
        return self.etags[path]

    def replace(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.etags.pop(path, None)

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if path.endswith(fault.suffix):
                    fault.seen += 1
                    if fault.skip < fault.seen <= fault.skip + fault.times:
                        return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        try:
            self._get()
        except OSError:
            self.close_connection = True  # the client had enough

    def _get(self) -> None:
        request = self._parsed()
        self.files.requests.append(request)
        content = self.files.files.get(request.path, b"")
        fault = self.files.fault_for(request.path)
        if fault:
            fault.answer(self, request, content)
        elif request.path not in self.files.files:
            self.status(404)
        elif request.begin is None:
            self.whole(request, content)
        else:
            self.range(request, content)

    def _parsed(self) -> Request:
        headers = {name.lower(): value for name, value in self.headers.items()}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        begin, end = (int(found[1]), int(found[2]) + 1) if found else (None, None)
        return Request(path=self.path.partition("?")[0], headers=headers, begin=begin, end=end)

    def status(self, code: int, body: bytes = b"what the server says", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def whole(self, request: Request, content: bytes) -> None:
        self.head(200, request, len(content))
        self.body(content)

    def range(self, request: Request, content: bytes) -> None:
        assert request.begin is not None
        assert request.end is not None
        part = content[request.begin : request.end]
        if not part:
            self.status(416)
            return
        last = request.begin + len(part) - 1
        self.head(206, request, len(part), Content_Range=f"bytes {request.begin}-{last}/{len(content)}")
        self.body(part)

    def head(self, code: int, request: Request, length: int, **headers: str) -> None:
        etag = self.files.etag_of(request.path)
        self.send_response(code)
        if etag is not None:
            self.send_header("ETag", etag)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def body(self, content: bytes) -> None:
        for begin in range(0, len(content), SEND_BYTES):
            part = content[begin : begin + SEND_BYTES]
            self.wfile.write(part)
            if self.files.bytes_per_second:
                time.sleep(len(part) / self.files.bytes_per_second)


# Ways to misbehave


def status(code: int) -> Callable[[Handler, Request, bytes], None]:
    return lambda handler, _request, _content: handler.status(code)


def redirect(location: str) -> Callable[[Handler, Request, bytes], None]:
    return lambda handler, _request, _content: handler.status(302, b"", Location=location)


def ignore_range(handler: Handler, request: Request, content: bytes) -> None:
    handler.whole(request, content)


def cut_after(size_bytes: int) -> Callable[[Handler, Request, bytes], None]:
    def answer(handler: Handler, request: Request, content: bytes) -> None:
        part = content[request.begin : request.end]
        handler.head(
            206,
            request,
            len(part),
            Content_Range=f"bytes {request.begin}-{request.begin + len(part) - 1}/{len(content)}",
        )
        handler.wfile.write(part[:size_bytes])
        handler.close_connection = True

    return answer


def other_range(handler: Handler, request: Request, content: bytes) -> None:
    part = content[request.begin : request.end]
    begin = (request.begin or 0) + 8
    handler.head(206, request, len(part), Content_Range=f"bytes {begin}-{begin + len(part) - 1}/{len(content)}")
    handler.wfile.write(part)


def too_short(handler: Handler, request: Request, content: bytes) -> None:
    part = content[request.begin : request.end]
    span = f"bytes {request.begin}-{request.begin + len(part) - 1}/{len(content)}"
    handler.head(206, request, len(part) // 2, Content_Range=span)
    handler.wfile.write(part[: len(part) // 2])


def too_long(handler: Handler, request: Request, content: bytes) -> None:
    part = content[request.begin : request.end]
    span = f"bytes {request.begin}-{request.begin + len(part) - 1}/{len(content)}"
    handler.head(206, request, 64 * len(part), Content_Range=span)
    for _ in range(64):
        handler.wfile.write(part)


def huge(handler: Handler, request: Request, content: bytes) -> None:
    """Says that the file has an exabyte."""
    part = content[request.begin : request.end]
    handler.head(
        206, request, len(part), Content_Range=f"bytes {request.begin}-{request.begin + len(part) - 1}/{10**18}"
    )
    handler.wfile.write(part)


def flipped(handler: Handler, request: Request, content: bytes) -> None:
    """One bit of the range is wrong."""
    middle = ((request.begin or 0) + min(request.end or 0, len(content))) // 2
    handler.range(request, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def header_bomb(handler: Handler, request: Request, content: bytes) -> None:
    handler.send_response(206)
    for number in range(20_000):
        handler.send_header(f"X-{number}", "y" * 500)
    handler.end_headers()


def stalled(stop: threading.Event) -> Callable[[Handler, Request, bytes], None]:
    """Says nothing."""

    def answer(handler: Handler, _request: Request, _content: bytes) -> None:
        stop.wait()
        handler.close_connection = True

    return answer


def slow_loris(stop: threading.Event) -> Callable[[Handler, Request, bytes], None]:
    def answer(handler: Handler, request: Request, content: bytes) -> None:
        part = content[request.begin : request.end]
        span = f"bytes {request.begin}-{request.begin + len(part) - 1}/{len(content)}"
        handler.head(206, request, len(part), Content_Range=span)
        for byte in part:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if stop.wait(0.05):
                handler.close_connection = True
                return

    return answer


@contextmanager
def serving_files() -> Iterator[FileServer]:
    """A FileServer on a free port of the loopback interface."""
    files = FileServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"files": files}))
    server.daemon_threads = True
    files.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

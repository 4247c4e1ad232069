"""A user's server that answers what no server should. Arguments: port, kind."""

import socketserver
import sys

ANSWERS = {
    "garbage": lambda out: out(b"\x00\xff garbage\r\n\r\n"),
    "unasked-upgrade": lambda out: out(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nbytes"
    ),
    "bad-chunk": lambda out: out(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n"),
    "short-body": lambda out: out(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhi"),
    "two-lengths": lambda out: out(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!"),
    "bad-status": lambda out: out(b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n"),
    "split-header": lambda out: out(b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"),
    "nothing": lambda out: None,
}


def endless_headers(out):
    out(b"HTTP/1.1 200 OK\r\n")
    while True:
        out(b"X-Long: " + b"a" * 4000 + b"\r\n")


def endless_hints(out):
    while True:
        out(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")


ANSWERS["endless-headers"] = endless_headers
ANSWERS["endless-hints"] = endless_hints


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        kind = self.request.recv(65536).split(b" ", 2)[1].decode()[1:]
        try:
            ANSWERS[kind](self.request.sendall)
        except OSError:
            pass  # the other side has had enough


socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.daemon_threads = True
socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

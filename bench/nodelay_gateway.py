"""The stock kernel gateway with one thing changed: TCP_NODELAY on every connection that it accepts."""

from kernel_gateway import launch_instance
from tornado.httpserver import HTTPServer

handle_stream = HTTPServer.handle_stream


def handle_stream_at_once(self, stream, address):
    stream.set_nodelay(True)
    return handle_stream(self, stream, address)


HTTPServer.handle_stream = handle_stream_at_once

if __name__ == "__main__":
    launch_instance()

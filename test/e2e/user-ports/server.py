"""A user's server: HTTP, streams both ways, WebSocket. Arguments: port, address."""

import asyncio
import hashlib
import sys

import tornado.web
import tornado.websocket


class Show(tornado.web.RequestHandler):
    def get(self):
        self.write({"host": self.request.host, "path": self.request.uri})

    head = get


asked = asyncio.Semaphore(0)


class Stream(tornado.web.RequestHandler):
    async def get(self):
        self.set_header("Content-Type", "text/event-stream")
        for number in range(3):
            if number > 0:
                await asked.acquire()
            self.write(f"data: {number}\n\n")
            await self.flush()


class Next(tornado.web.RequestHandler):
    def get(self):
        asked.release()


class Big(tornado.web.RequestHandler):
    async def get(self):
        for _ in range(int(self.get_argument("megabytes"))):
            self.write(b"x" * 1_000_000)
            await self.flush()


@tornado.web.stream_request_body
class Digest(tornado.web.RequestHandler):
    def prepare(self):
        self.request.connection.set_max_body_size(1 << 32)
        self.digest = hashlib.md5()
        self.size = 0

    def data_received(self, chunk):
        self.digest.update(chunk)
        self.size += len(chunk)

    def put(self):
        self.write(f"{self.size} {self.digest.hexdigest()}")


class Echo(tornado.websocket.WebSocketHandler):
    def check_origin(self, origin):
        return True

    def on_message(self, message):
        self.write_message(message, binary=isinstance(message, bytes))


async def main():
    routes = [
        ("/stream", Stream),
        ("/next", Next),
        ("/big", Big),
        ("/digest", Digest),
        ("/echo", Echo),
        ("/.*", Show),
    ]
    tornado.web.Application(routes).listen(int(sys.argv[1]), sys.argv[2])
    await asyncio.Event().wait()


asyncio.run(main())

"""What one client can make egress hold in memory, compute or keep open: limits that mitmproxy has no options for.

mitmproxy makes a handler for each connection and stacks layers in it, each a parser that turns bytes into events for
the next. `install` puts the classes of this file, which derive from mitmproxy's, in the place of some of those.
`next_layer` decides what a connection may speak, which is HTTP, in TLS or not.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import wsproto.events
from mitmproxy import ctx
from mitmproxy.net import check
from mitmproxy.net.http import url
from mitmproxy.proxy import commands, events, layers, mode_servers
from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers import modes, websocket
from mitmproxy.proxy.layers.http import _http1

HELLO_BYTES = 64 * 1024  # of a TLS ClientHello
NAME_LENGTH = 300  # of a host's name with its port; a valid one has at most 253 characters, and a port 5
HEAD_BYTES = 64 * 1024  # of a request's or a response's head; also of what a client sends ahead of its turn
HEAD_LINES = 200
WAITING_BYTES = 64 * 1024  # of a body while its server is not yet connected; then reading stops
MESSAGE_BYTES = 16 * 1024 * 1024  # of a WebSocket message
PIECE_BYTES = 64 * 1024  # of a WebSocket frame that are waited for; longer frames are passed on in pieces
LINGER_BYTES = 1024 * 1024  # read of a refused body, so that its client comes to read the answer
LINGER_SECONDS = 3
START_SECONDS = 30  # for a TLS handshake, and for a head, from its first byte to its last

SILENT_SECONDS = 10.0  # between two lines about refused connections

# Connections of clients; each may have two to servers on average. Fewer if descriptors are short.
CLIENTS, CLIENTS_PER_PEER = 1000, 500
SPARE_DESCRIPTORS = 164  # mitmproxy's own, and those of one accept loop, which takes up to 100 before it looks

Commands = Generator[commands.Command, Any, Any]


class Slots:
    """Counts connections, and says when they have run out, though not each time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 3 * CLIENTS + SPARE_DESCRIPTORS
        if soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.clients = max(1, min(CLIENTS, (soft - SPARE_DESCRIPTORS) // 3))
        self.servers = 2 * self.clients
        self.per_peer = min(CLIENTS_PER_PEER, (self.clients + 1) // 2)
        self.peers: Counter[str] = Counter()
        self.connected = 0
        self._say = say
        self._said_at = -SILENT_SECONDS

    @contextmanager
    def client(self, peer: str) -> Iterator[bool]:
        """Whether there is a connection left for `peer`; it is taken for as long as the context lasts."""
        free = self.peers.total() < self.clients and self.peers[peer] < self.per_peer
        if not free and time.monotonic() >= self._said_at + SILENT_SECONDS:
            self._said_at = time.monotonic()
            self._say(f"refusing connections: {peer} has {self.peers[peer]}, all have {self.peers.total()}")
        self.peers[peer] += free
        try:
            yield free
        finally:
            self.peers[peer] -= free
            if not self.peers[peer]:
                del self.peers[peer]

    @contextmanager
    def server(self) -> Iterator[bool]:
        free = self.connected < self.servers
        self.connected += free
        try:
            yield free
        finally:
            self.connected -= free


class Reader:
    """A stream that is read only while what was read before can go somewhere."""

    def __init__(self, stream: asyncio.StreamReader, flowing: asyncio.Event) -> None:
        self._stream = stream
        self._flowing = flowing

    async def read(self, size: int) -> bytes:
        await self._flowing.wait()
        return await self._stream.read(size)


class Connection(mode_servers.ProxyConnectionHandler):
    """One client's connection, with those to the servers that it asks for."""

    slots: Slots

    def __init__(self, master: Any, reader: Any, writer: Any, options: Any, mode: Any) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._stalled: set[object] = set()
        self._timers: dict[object, asyncio.TimerHandle] = {}
        super().__init__(master, Reader(reader, self._flowing), writer, options, mode)

    @classmethod
    def of(cls, layer: Layer) -> Connection:
        connection = ctx.master.addons.get("proxyserver").connections[layer.context.client.id]
        assert isinstance(connection, cls)
        return connection

    async def handle_client(self) -> None:
        peer = self.client.peername[0] if self.client.peername else "?"
        with self.slots.client(peer) as free:
            if free:
                try:
                    await super().handle_client()
                finally:
                    for timer in self._timers.values():
                        timer.cancel()
            else:
                writer = self.transports.pop(self.client).writer
                writer.write(_http1.make_error_response(503, "too many connections"))
                writer.close()

    async def open_connection(self, command: Any) -> None:
        with self.slots.server() as free:
            if free:
                await super().open_connection(command)
            else:
                command.connection.error = "too many connections"
                await self.server_event(events.OpenConnectionCompleted(command, command.connection.error))

    def stall(self, layer: object, stalled: bool) -> None:
        """Read from the client again when no layer is stalled any more."""
        (self._stalled.add if stalled else self._stalled.discard)(layer)
        (self._flowing.clear if self._stalled else self._flowing.set)()

    def limit(self, layer: object, seconds: float) -> None:
        """Close the connection if `layer` does not say in time that it has what it waits for."""
        if layer not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[layer] = loop.call_later(seconds, lambda: loop.create_task(self.on_timeout()))

    def unlimit(self, layer: object) -> None:
        if timer := self._timers.pop(layer, None):
            timer.cancel()


class Hello:
    """The records of a ClientHello. mitmproxy would parse them all from the start with each byte that arrives."""

    def __init__(self) -> None:
        self.records = bytearray()
        self._next = 0
        self._hello = bytearray()

    def add(self, data: bytes) -> bool:
        """Whether the hello is complete, or cannot become one any more."""
        self.records += data
        while len(self.records) >= self._next + 5:
            body = self._next + 5
            end = body + int.from_bytes(self.records[body - 2 : body])
            if self.records[self._next] != 0x16 or end == body:
                return True
            if len(self.records) < end:
                return False
            self._hello += self.records[body:end]
            self._next = end
            if len(self._hello) >= 4 and len(self._hello) >= 4 + int.from_bytes(self._hello[1:4]):
                return True
        return False


class ClientTLS(layers.ClientTLSLayer):
    """TLS with a client: the hello is parsed once, and neither it nor the handshake takes long."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._hello = Hello()

    def start_handshake(self) -> Commands:
        Connection.of(self).limit(self, START_SECONDS)
        yield from super().start_handshake()

    def receive_handshake_data(self, data: bytes) -> Commands:
        if not self.client_hello_parsed:
            complete = self._hello.add(data)
            if len(self._hello.records) > HELLO_BYTES:
                return False, "ClientHello too long"
            if not complete:
                return False, None
            data = bytes(self._hello.records)
        return (yield from super().receive_handshake_data(data))

    def _handshake_finished(self, err: str | None) -> Commands:
        Connection.of(self).unlimit(self)
        yield from super()._handshake_finished(err)

    def on_handshake_error(self, err: str) -> Commands:
        yield from super().on_handshake_error(err[:200])  # for the log; it can hold the whole hello


class Server(_http1.Http1Server):
    """HTTP/1 as it is spoken with a client: heads are short and quick, and a refused request is not read to its end."""

    _lingering = 0  # how many more bytes are read and thrown away before the connection is closed

    def _handle_event(self, event: Any) -> Commands:
        received = isinstance(event, events.DataReceived)
        if received and self._lingering:
            self._lingering -= len(event.data)
            if self._lingering <= 0:
                self._lingering = 1
                yield commands.CloseConnection(self.conn)
            return
        head_before = self.stream_id if self.state == self.read_headers else None
        yield from super()._handle_event(event)
        if self._lingering or self.state == self.passthrough:
            return
        if head_before and (self.state != self.read_headers or self.stream_id != head_before or not self.buf):
            Connection.of(self).unlimit(self)
        if received and len(self.buf) > HEAD_BYTES:
            if self.state == self.read_headers:
                yield from self._refuse(431, "the head of this request is too long")
            elif self.response:
                yield from self._linger()
            else:
                yield from self._refuse(400, "too much was sent ahead of its turn, or a chunk's header is too long")
        elif self.state == self.read_headers and self.buf:
            Connection.of(self).limit(self, START_SECONDS)

    def read_body(self, event: Any) -> Commands:
        try:
            yield from super().read_body(event)
        except NotImplementedError:  # what mitmproxy raises for trailers
            yield from self._refuse(400, "trailers are not supported")

    def send(self, event: Any) -> Commands:
        if self._lingering:
            return  # the answer is out
        yield from super().send(event)
        ends = isinstance(event, http_layers.ResponseEndOfMessage) and self.response and not self.request_done
        if ends and self.response.headers.get("connection", "").lower() == "close":
            yield from self._linger()

    def _refuse(self, status: int, reason: str) -> Commands:
        if not self.response:
            yield commands.SendData(self.conn, _http1.make_error_response(status, reason))
        yield from self._linger()

    def _linger(self) -> Commands:
        """Read on for a while. A connection that is closed with unread data is reset, and the answer lost."""
        self._lingering = LINGER_BYTES
        self.buf = _http1.ReceiveBuffer()
        connection = Connection.of(self)
        connection.unlimit(self)
        connection.limit(self, LINGER_SECONDS)
        yield from ()


class Client(_http1.Http1Client):
    """HTTP/1 as it is spoken with a server, whose heads are short, too."""

    def _handle_event(self, event: Any) -> Commands:
        yield from super()._handle_event(event)
        if self.state != self.passthrough and len(self.buf) > HEAD_BYTES:
            yield commands.CloseConnection(self.conn)

    def read_body(self, event: Any) -> Commands:
        try:
            yield from super().read_body(event)
        except NotImplementedError:  # trailers, which a proxy may drop
            yield http_layers.ReceiveHttp(http_layers.ResponseEndOfMessage(self.stream_id))
            yield from self.mark_done(response=True)


class Stream(http_layers.HttpStream):
    """One request and its response: a refused body is not kept, and an allowed one not beyond what is on its way."""

    client_state: Any
    _has_body = False

    def handle_event(self, event: Any) -> Commands:
        yield from super().handle_event(event)
        if isinstance(event, (http_layers.RequestData, events.CommandCompleted)):
            waiting = (e for e in self._paused_event_queue if isinstance(e, http_layers.RequestData))
            Connection.of(self).stall(self, sum(len(e.data) for e in waiting) > WAITING_BYTES)

    def state_wait_for_request_headers(self, event: Any) -> Commands:
        self._has_body = not event.end_stream
        yield from super().state_wait_for_request_headers(event)

    def check_killed(self, emit_error_hook: bool) -> Commands:
        """Called after each hook; after the one that may refuse a request, answer one that has a body at once."""
        asked = self.client_state == self.state_wait_for_request_headers
        if not (asked and self._has_body and self.flow.response):
            return (yield from super().check_killed(emit_error_hook))
        response = self.flow.response
        response.headers["Connection"] = "close"
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        client = self.context.client
        yield http_layers.SendHttp(http_layers.ResponseHeaders(self.stream_id, response), client)
        yield http_layers.SendHttp(http_layers.ResponseData(self.stream_id, response.raw_content), client)
        yield http_layers.DropStream(self.stream_id)
        yield http_layers.SendHttp(http_layers.ResponseEndOfMessage(self.stream_id), client)
        return True


class WebSocketSide(websocket.WebsocketConnection):
    """One side of a WebSocket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting = bytearray()
        self._size = 0

    def pieces(self) -> Iterator[Any]:
        """What came, with messages as whole frames if they are short."""
        for event in self.events():
            if not isinstance(event, wsproto.events.Message):
                yield event
                continue
            is_text = isinstance(event, wsproto.events.TextMessage)
            self._waiting += event.data.encode() if is_text else event.data
            self._size += len(event.data)
            if self._size > MESSAGE_BYTES:
                yield wsproto.events.CloseConnection(code=1009, reason="message too big")
                return
            if event.frame_finished or event.message_finished or len(self._waiting) >= PIECE_BYTES:
                data = self._waiting.decode() if is_text else bytes(self._waiting)
                self._waiting.clear()
                yield type(event)(data, message_finished=event.message_finished)
            if event.message_finished:
                self._size = 0


class WebSocket(websocket.WebsocketLayer):
    """Passes messages on as they come. mitmproxy collects each, in time that grows with the square of its length."""

    def relay_messages(self, event: Any) -> Commands:
        from_client = event.connection == self.context.client
        sides = (self.client_ws, self.server_ws)
        source, target = sides if from_client else sides[::-1]
        source.receive_data(event.data if isinstance(event, events.DataReceived) else None)
        for piece in source.pieces():
            if not isinstance(piece, wsproto.events.CloseConnection):
                if isinstance(piece, wsproto.events.Message) and (record := self.flow.metadata.get("record")):
                    (record.upwards if from_client else record.downwards)(piece.data)
                yield target.send2(piece)
                continue
            for side in sides:
                if side.state in (wsproto.ConnectionState.OPEN, wsproto.ConnectionState.REMOTE_CLOSING):
                    yield side.send2(piece)
                yield commands.CloseConnection(side.conn)
            yield websocket.WebsocketEndHook(self.flow)
            self.flow.live = False
            self._handle_event = self.done
            return


class Nothing(Layer):
    """What a connection speaks when that cannot be decided."""

    def _handle_event(self, event: Any) -> Commands:
        yield commands.CloseConnection(self.context.client)


def next_layer(found: NextLayer) -> Layer:
    """What a connection speaks next, as far as its first byte says: TLS or HTTP, and HTTP in TLS."""
    context, data = found.context, found.data_client()
    outermost = isinstance(context.layers[-1], (modes.HttpProxy, modes.HttpUpstreamProxy))
    if data[:1] == b"\x16" and not isinstance(context.layers[-1], ClientTLS):
        if not outermost:
            # The server's side first: it is the outer layer, and opens when the client's asks for it.
            server = layers.ServerTLSLayer(context)
            server.child_layer = ClientTLS(context)
            return server
        tls = ClientTLS(context)
        tls.child_layer = _proxy_layer(context)
        return tls
    return _proxy_layer(context) if outermost else layers.HttpLayer(context, http_layers.HTTPMode.transparent)


def _proxy_layer(context: Any) -> Layer:
    upstream = isinstance(context.layers[0], modes.HttpUpstreamProxy)
    return layers.HttpLayer(context, http_layers.HTTPMode.upstream if upstream else http_layers.HTTPMode.regular)


def limit_names() -> None:
    """Refuse host names that are longer than any can be. mitmproxy decodes names before it calls a hook.

    Python's idna codec and urllib normalize a name, and this takes time that grows with the square of its length: up
    to 5 s for one request or ClientHello.
    """
    for module, name in ((check, "is_valid_host"), (url, "parse_authority")):
        setattr(module, name, _with_short_name(getattr(module, name)))
    url.parse = _with_scheme(url.parse)


def _with_short_name(function: Callable[..., Any]) -> Callable[..., Any]:
    def limited(host: str | bytes, *args: Any, **kwargs: Any) -> Any:
        return function(host if len(host) <= NAME_LENGTH else host[:0], *args, **kwargs)  # an empty name is invalid

    return limited


def _with_scheme(function: Callable[..., Any]) -> Callable[..., Any]:
    def limited(target: str | bytes) -> Any:
        # urllib drops control characters at the start. In "\x01//a/://b/" it finds the host a; mitmproxy checked b.
        if not target[:1].isalpha():
            raise ValueError("a URL starts with its scheme")
        return function(target)

    return limited


def install(say: Callable[[str], None]) -> None:
    """Put these limits where mitmproxy looks for its own parts. Raises AttributeError if it looks elsewhere."""
    for module, name, replacement in (
        (mode_servers, "ProxyConnectionHandler", Connection),
        (http_layers, "HttpStream", Stream),
        (http_layers, "Http1Server", Server),
        (http_layers, "Http1Client", Client),
        (websocket, "WebsocketConnection", WebSocketSide),
        (websocket, "WebsocketLayer", WebSocket),
    ):
        if not issubclass(replacement, getattr(module, name)):
            raise AttributeError(f"{module.__name__}.{name} is not what it was")
        setattr(module, name, replacement)
    limit_names()
    Connection.slots = Slots(say)

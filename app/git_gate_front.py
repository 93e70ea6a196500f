"""What git-gate (git://, 9418) and git-http (HTTP, 9420) share: the listener, and the exchange of a client with git.

The listener is one thread that never waits for a client. It reads requests up to a deadline, answers what needs no
git, and starts a process for each of the others. If room runs short, it closes the oldest connection of the peer that
has the most. So a newcomer is always accepted, and a health check is always answered.

TERM ends the listener at once. The processes that serve requests ignore it and finish. They stay in the listener's
process group, so the supervisor gives them its grace period. Each git has a session of its own and the default signal
dispositions: an ignored TERM would be inherited, and git stops its own children with TERM.

Nothing that a client sends reaches a resolver.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fcntl
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

APP = os.environ.get("GIT_GATE_APP", "/app")
ROOT = Path(os.environ.get("GIT_GATE_ROOT", "/srv/git"))

MAX_CONNECTIONS = 256  # that are not being served: silent, half a request, or waiting for a place
MAX_SERVED = 32
MAX_SERVED_PER_PEER = 16
REQUEST_SECONDS = 15  # for a request's line and headers, however they trickle
QUEUE_SECONDS = 30
CLOSE_SECONDS = 5  # for a client to notice that it has been answered
UPDATE_SECONDS = 300  # for the access hook, which has closer limits of its own
SILENT_SECONDS = 30  # of a client that says nothing from the start; a push may wait for the client's pre-push hook
IDLE_SECONDS = 300  # of another; it may be long over its deltas before it sends a pack
SERVICE_SECONDS = 3600  # for all that a client sends; a push may then go on for as long again
MAX_FETCH_REQUEST = 16 << 20  # git remembers each line of it; this is room for 300,000 of them
MAX_PUSH_COMMANDS = 4 << 20  # what comes before the pack; git remembers these as well
PUSH_REFS = int(os.environ.get("GIT_GATE_PUSH_REFS") or 100)  # if one name is bad, git starts a process for each
PIECE = 1 << 16

# A small pack may take long to unpack, and git completes it by the bases of its deltas, which may be large. To apply a
# delta, git holds both its base and its result in memory.
_SERVICE = """. "$GIT_GATE_APP/git_gate_env.sh"
if [ "$1" = receive-pack ]; then
    ulimit -S -t "$GIT_GATE_UNPACK_SECONDS" && ulimit -S -f $((GIT_GATE_PUSH_MIB * 2048)) || exit
    ulimit -S -d $((GIT_GATE_SCAN_MIB * 384)) || exit
fi
exec git "$@"
"""
_ACCEPTS_A_TURN = 64

# No "/", no leading dot, no "%": nothing in a name can leave the directory of the mirrors.
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*?"


class BadRequest(Exception):
    """The client's request cannot be understood, or is larger than it may be."""


class Refused(Exception):
    """The request is understood and not served, for the reason that the client is told."""


class Ended(Exception):
    """Git was stopped early, and the client gets no more."""


class Reply(Exception):
    """Answers a connection with these bytes, without a process for it."""

    def __init__(self, payload: bytes, log: str = "") -> None:
        super().__init__(log)
        self.payload, self.log = payload, log


class Peer(NamedTuple):
    address: str
    server_address: str
    server_port: int

    @property
    def network(self) -> str:
        """What its connections are counted against: one host can have any address of an IPv6 network."""
        packed = socket.inet_pton(socket.AF_INET6, self.address) if ":" in self.address else b""
        return packed[:8].hex() if packed and not packed.startswith(bytes(10) + b"\xff\xff") else self.address


class Request(abc.ABC):
    """A request for git."""

    service: str  # upload-pack or receive-pack
    mirror: Path

    @abc.abstractmethod
    def refusal(self, reason: str) -> bytes:
        """What the client is told instead of being served."""

    @abc.abstractmethod
    def serve(self, client: socket.socket, peer: Peer) -> None:
        """Runs in a process of its own."""

    def __str__(self) -> str:
        return f"{self.service} {self.mirror.name}"


class Listener:
    """`parse` gets all that a connection has sent: None means that more must come, Reply ends it."""

    def __init__(self, name: str, address: tuple[str, int], parse: Callable[[bytes], Request | None]) -> None:
        self._name = name
        self._parse = parse
        self._connections: dict[_Connection, None] = {}  # in the order of their arrival
        self._served: dict[int, str] = {}  # process -> network of its peer
        self._stopping = False
        self._evicted, self._said_at = 0, 0.0
        self._selector = selectors.DefaultSelector()
        is_ipv6 = ":" in address[0]
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        self._socket = socket.create_server(address, family=family, backlog=512, dualstack_ipv6=is_ipv6)
        self._socket.setblocking(False)
        self._wake_up, self._woken = socket.socketpair()
        for end in (self._wake_up, self._woken):
            end.setblocking(False)
        self._selector.register(self._socket, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain_wake_ups)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake_up.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self._stopping:
            for key, _ in self._selector.select(self._seconds_to_next_deadline()):
                if isinstance(key.data, _Connection):
                    self._read(key.data)
                else:
                    key.data()
            self._reap()
            self._expire()
            self._serve_those_who_wait()
        return 0

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _drain_wake_ups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(PIECE):
                pass

    # --- connections ---

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                client, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) and not self._evict():
                    time.sleep(0.1)  # all descriptors serve requests; do not spin until one is done
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                self._evict()
            try:
                client.setblocking(False)
                connection = _Connection(client, address[0])
                self._selector.register(client, selectors.EVENT_READ, connection)
            except OSError:
                client.close()
            else:
                self._connections[connection] = None

    def _evict(self) -> bool:
        """Close the oldest connection of the peer that has the most."""
        if not self._connections:
            return False
        counts = Counter(connection.peer.network for connection in self._connections)
        greediest = max(counts, key=counts.__getitem__)  # most_common() opens files, of which there may be none left
        self._close(next(c for c in self._connections if c.peer.network == greediest))
        self._evicted += 1
        if time.monotonic() - self._said_at > 60:
            self.say(f"too many connections: closed {self._evicted} of those that wait, most from {greediest}")
            self._evicted, self._said_at = 0, time.monotonic()
        return True

    def _read(self, connection: _Connection) -> None:
        if connection not in self._connections:  # closed earlier in this turn
            return
        try:
            data = connection.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self._close(connection)
        if connection.is_answered:
            return
        connection.received += data
        try:
            connection.request = self._parse(bytes(connection.received))
        except Reply as reply:
            if reply.log:
                self.say(f"{connection.peer.address}: {reply.log}")
            return self._answer(connection, reply.payload)
        except Exception as error:  # one client's request must not end what serves the others
            self.say(f"{connection.peer.address}: cannot read a request: {type(error).__name__}: {error}")
            return self._close(connection)
        if connection.request:
            self._selector.unregister(connection.socket)
            connection.deadline = time.monotonic() + QUEUE_SECONDS

    def _answer(self, connection: _Connection, payload: bytes) -> None:
        """Send what fits into an empty socket's buffer, and wait for the client to close: to close on what it still
        sends would take the answer from it."""
        connection.is_answered, connection.request = True, None
        connection.deadline = time.monotonic() + CLOSE_SECONDS
        try:
            connection.socket.send(payload)
            connection.socket.shutdown(socket.SHUT_WR)
            if connection.socket not in self._selector.get_map():
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        except OSError:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.socket)
        connection.socket.close()
        del self._connections[connection]

    def _seconds_to_next_deadline(self) -> float | None:
        if not self._connections:
            return None
        return max(0.0, min(connection.deadline for connection in self._connections) - time.monotonic())

    def _expire(self) -> None:
        now = time.monotonic()
        for connection in [c for c in self._connections if c.deadline <= now]:
            if connection.request:
                self._answer(connection, connection.request.refusal("too many requests are being served; try again"))
            else:
                self._close(connection)

    # --- processes ---

    def _serve_those_who_wait(self) -> None:
        for connection in [c for c in self._connections if c.request]:
            if len(self._served) >= MAX_SERVED:
                return
            if Counter(self._served.values())[connection.peer.network] < MAX_SERVED_PER_PEER:
                self._serve(connection)

    def _serve(self, connection: _Connection) -> None:
        request = connection.request
        assert request
        try:
            process = os.fork()
        except OSError as error:
            self.say(f"cannot start a process for {request}: {error.strerror}; refusing it")
            return self._answer(connection, request.refusal("this server cannot start a process now; try again"))
        if process == 0:
            self._be_the_process(connection, request)
        self._served[process] = connection.peer.network
        self._close(connection)

    def _be_the_process(self, connection: _Connection, request: Request) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, lambda *_: None)  # unlike SIG_IGN not inherited by programs
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for other in (self._socket, self._wake_up, self._woken, *(c.socket for c in self._connections)):
                if other is not connection.socket:
                    other.close()
            self.say(f"{connection.peer.address}: {request}")
            connection.socket.setblocking(True)
            connection.socket.settimeout(IDLE_SECONDS)
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request.serve(connection.socket, connection.peer)
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.say(f"{connection.peer.address}: cannot finish {request}: {type(error).__name__}: {reason}")
        finally:
            os._exit(0)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while process := os.waitpid(-1, os.WNOHANG)[0]:
                self._served.pop(process, None)

    def say(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)


class _Connection:
    def __init__(self, client: socket.socket, address: str) -> None:
        self.socket = client
        self.peer = Peer(address.partition("%")[0], *client.getsockname()[:2])
        self.received = bytearray()
        self.deadline = time.monotonic() + REQUEST_SECONDS
        self.request: Request | None = None  # whole, and waiting for a place
        self.is_answered = False


def listen(name: str, host: str, port: str, parse: Callable[[bytes], Request | None]) -> int:
    """Serve until TERM; the exit status."""
    try:
        listener = Listener(name, (host, int(port)), parse)
    except (OSError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        print(f"cannot listen on {host}:{port}: {reason}; set a free address and port", file=sys.stderr)
        return 1
    listener.say(f"serving {ROOT} on port {port}")
    return listener.run()


# --- what a process does that serves a request ---


def mirror_named(name: str) -> Path:
    mirror = ROOT / f"{name}.git"
    if not os.path.isdir(mirror):  # which, unlike Path.is_dir, takes a name that is too long for one that is not there
        raise Refused(f"no mirror {name}")
    return mirror


def bring_up_to_date(request: Request, peer: Peer) -> None:
    """Run the access hook with the arguments that git daemon gives to one, but without names: git daemon looks up the
    one that the client sent."""
    hook = f"{APP}/git_gate_access_hook.sh"
    names, address = ["", ""], [peer.server_address, str(peer.server_port)]
    command = [hook, request.service, str(request.mirror), *names, *address]
    environment = _environment(peer)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            said = process.communicate(timeout=UPDATE_SECONDS)[0].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            _kill_session(process)
            raise Refused(f"the mirror was not brought up to date in {UPDATE_SECONDS} s") from None
    if process.returncode != 0:
        raise Refused(said.partition("\n")[0] or "the gate is out of order")


def start_git(request: Request, peer: Peer, protocol: str, *options: str) -> subprocess.Popen[bytes]:
    # The lock tells git-gate's next start that this request is alive, so that it leaves its files alone. It is held
    # until the last process that inherited it has ended.
    with open(ROOT / ".busy", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as busy:
        fcntl.flock(busy, fcntl.LOCK_SH)
        return subprocess.Popen(
            ["sh", "-c", _SERVICE, "git", request.service, *options, str(request.mirror)],
            env=_environment(peer) | ({"GIT_PROTOCOL": protocol} if protocol else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[busy.fileno()],
            start_new_session=True,
        )


def _environment(peer: Peer) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "GIT_PROTOCOL"}
    places = {"GIT_GATE_APP": APP, "GIT_GATE_ROOT": str(ROOT)}
    if key := os.environ.get("GIT_GATE_SSH_KEY"):  # a descriptor of this process, which those that it starts lack
        places["GIT_GATE_SSH_KEY"] = key.replace("/proc/self/", f"/proc/{os.getpid()}/")
    return inherited | places | {"REMOTE_ADDR": peer.address, "GIT_GATE_PEER": peer.network}


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def up_to(limit: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise BadRequest(f"a request may have {limit} bytes")
        yield piece


def with_few_commands(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass on a push if its list of refs, which the first flush packet ends, is not too long."""
    total, refs, left, head, is_new, is_list = 0, 0, 0, b"", False, True
    for piece in pieces:
        position = 0
        while is_list and position < len(piece):
            if left:
                step = min(left, len(piece) - position)
                left -= step
                refs += is_new and piece[position] != ord("s")  # a line of a shallow clone's: "shallow ID"
                is_new = False
            else:
                step = min(4 - len(head), len(piece) - position)
                head += piece[position : position + step]
            position += step
            if len(head) == 4:
                is_list = bool(re.fullmatch(rb"[0-9A-Fa-f]{4}", head)) and int(head, 16) >= 4  # else git refuses it
                left, head, is_new = (int(head, 16) - 4 if is_list else 0), b"", True
        total += position
        if refs > PUSH_REFS:
            limit = f"GIT_GATE_PUSH_REFS={PUSH_REFS}"
            raise Refused(f"this push updates more branches and tags than {limit} allows; push fewer at a time")
        if total > MAX_PUSH_COMMANDS:
            raise BadRequest(f"the refs of a push may take {MAX_PUSH_COMMANDS} bytes")
        yield piece


def wait_for_close(client: socket.socket) -> None:
    """To close on what a client still sends would take the answer from it."""
    deadline = time.monotonic() + CLOSE_SECONDS
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            client.settimeout(left)
            if not client.recv(PIECE):
                return


class Incoming:
    """What a client sends after its request's line and headers."""

    def __init__(self, received: bytes) -> None:
        self._buffer = bytearray(received)
        self._has_ended = False

    def feed(self, data: bytes) -> None:
        """Add what was received; b"" means that the client sends no more."""
        self._buffer += data
        self._has_ended = not data

    def pieces(self) -> Iterator[bytes]:
        """Yield what is for git, or b"" if more must be fed first."""
        while self._buffer or not self._has_ended:
            yield self._take(PIECE)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class Exchange:
    """Carries a request to git and git's answer to the client, both ways at once, in bounded memory.

    A push that has arrived is finished whatever becomes of its client: between upstream's yes and the mirror's own ref
    update there is no good moment to stop. So a client that is too slow ends a fetch by KILL, but a push by the end of
    its input, which ends half a push and leaves a whole one alone.
    """

    def __init__(
        self,
        client: socket.socket,
        request: Request,
        incoming: Incoming,
        git: subprocess.Popen[bytes],
        framed: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """`framed` makes of each piece of the answer what is sent; b"" stands for the answer's end."""
        assert git.stdin and git.stdout
        self._client, self._request, self._git = client, request, git
        self._git_in, self._git_out = git.stdin.fileno(), git.stdout.fileno()
        self._is_push = request.service == "receive-pack"
        self._incoming, self._framed = incoming, framed
        pieces = incoming.pieces()
        self._pieces = with_few_commands(pieces) if self._is_push else up_to(MAX_FETCH_REQUEST, pieces)
        self._for_git = self._for_client = b""
        self._takes_input = self._git_listens = self._has_client = True
        self._git_has_ended = self._has_heard = False
        self._started_at = self._moved_at = time.monotonic()
        self.problem = ""  # with what the client sent
        self.has_answered = False

    def run(self) -> None:
        """Return when git has ended. `has_answered` then tells whether it sent anything, `problem` what was wrong with
        the request. Raises Ended if the client gets no more."""
        for stream in (self._client.fileno(), self._git_in, self._git_out):
            os.set_blocking(stream, False)
        try:
            while not self._git_has_ended or self._for_client:
                self._turn()
            self._git.wait(CLOSE_SECONDS)
        except (BadRequest, Ended, subprocess.TimeoutExpired) as why:
            _kill_session(self._git)
            self._git.wait()
            if not isinstance(why, BadRequest):
                raise

    def _turn(self) -> None:
        if self._takes_input and not self._for_git:
            self._next_piece()
        from_client = select.POLLIN if self._takes_input and not self._for_git else 0
        to_client = select.POLLOUT if self._for_client else 0
        events = {
            self._client.fileno(): from_client | to_client,
            self._git_in: select.POLLOUT if self._for_git else 0,
            self._git_out: 0 if self._for_client or self._git_has_ended else select.POLLIN,
        }
        poll = select.poll()
        for stream, wanted in events.items():
            if wanted:
                poll.register(stream, wanted)
        is_silent = self._takes_input and not self._has_heard and not self._is_push
        patience = SILENT_SECONDS if is_silent else IDLE_SECONDS
        until = min(self._moved_at + patience, self._started_at + self._seconds())
        ready = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1))
        if time.monotonic() >= until:
            return self._too_slow()
        if self._git_in in ready:
            self._write_to_git()
        if from_client and ready.get(self._client.fileno(), 0) & ~select.POLLOUT:
            self._read_from_client()
        if self._for_client and self._client.fileno() in ready:
            self._write_to_client()
        if self._git_out in ready:
            self._read_from_git()

    def _seconds(self) -> float:
        return SERVICE_SECONDS if self._takes_input or not self._is_push else 2 * SERVICE_SECONDS

    def _too_slow(self) -> None:
        if not self._is_push or time.monotonic() >= self._started_at + 2 * SERVICE_SECONDS:
            raise Ended("it takes too long")
        if self._for_client:
            self._lose_client()
        elif self._takes_input:
            self._end_input()
        self._moved_at = time.monotonic()  # a silent push may be at work; the gate has limits of its own

    def _next_piece(self) -> None:
        try:
            piece = next(self._pieces, None)
        except Refused as why:
            packet = b"\x03" + str(why).encode()  # as git sends its own errors once the push has begun
            self._for_client, self.has_answered = self._framed(b"%04x%b" % (len(packet) + 4, packet)), True
            piece = None
        except BadRequest as why:
            self.problem = str(why)
            if not self._is_push:
                raise
            piece = None
        if piece is None:
            self._end_input()
        elif self._git_listens:
            self._for_git = piece

    def _end_input(self) -> None:
        self._takes_input, self._for_git = False, b""
        assert self._git.stdin
        self._git.stdin.close()

    def _read_from_client(self) -> None:
        try:
            self._incoming.feed(self._client.recv(PIECE))
        except BlockingIOError:
            return
        except OSError:
            return self._lose_client()
        self._has_heard = True
        if self._git_listens:  # else only what the client takes of the answer counts
            self._moved_at = time.monotonic()

    def _write_to_git(self) -> None:
        try:
            written = os.write(self._git_in, self._for_git)
        except BlockingIOError:
            return
        except BrokenPipeError:  # git has heard enough; the client may send the rest, to be able to read the answer
            self._git_listens, self._for_git = False, b""
            return
        self._for_git = self._for_git[written:]
        self._moved_at = time.monotonic()

    def _read_from_git(self) -> None:
        piece = os.read(self._git_out, PIECE)
        self._git_has_ended = not piece
        self._moved_at = time.monotonic()
        if self._has_client and (piece or self.has_answered):
            self._for_client = self._framed(piece)
            self.has_answered = True

    def _write_to_client(self) -> None:
        try:
            sent = self._client.send(self._for_client)
        except BlockingIOError:
            return
        except OSError:
            return self._lose_client()
        self._for_client = self._for_client[sent:]
        self._moved_at = time.monotonic()

    def _lose_client(self) -> None:
        if not self._is_push:
            raise Ended("its client has gone")
        print(f"{self._request} is going on without its client", file=sys.stderr, flush=True)
        self._has_client, self._for_client = False, b""
        if self._takes_input:
            self._end_input()

"""The world around a bundle, as PID 1's only child of a container without a network: web servers and an ssh server.

Everything it makes stands in /shared: ca.pem, ssh/id, ssh/known_hosts, and requests.jsonl, a line for each request.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SHARED = Path("/shared")
HOSTS = [line.split()[1] for line in Path("/etc/hosts").read_text().splitlines() if ".example.test" in line]
SSHD = """\
Port 2222
HostKey /etc/ssh/host_key
PermitRootLogin prohibit-password
AuthorizedKeysFile /etc/ssh/agent_keys
PasswordAuthentication no
UsePAM no
PidFile none
"""


class Recorder(BaseHTTPRequestHandler):
    """Writes down each request, and answers with what it wrote."""

    lock = threading.Lock()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/git/"):
            return self.send_file(Path("/srv/upstream", self.path.removeprefix("/git/").partition("?")[0]))
        record = {"tls": isinstance(self.connection, ssl.SSLSocket), "path": self.path}
        line = json.dumps(record | {"headers": {key.lower(): value for key, value in self.headers.items()}})
        with self.lock, open(SHARED / "requests.jsonl", "a") as file:
            file.write(line + "\n")
        self.send_response(200)
        self.send_header("Content-Length", str(len(line)))
        self.end_headers()
        self.wfile.write(line.encode())

    def send_file(self, path: Path) -> None:
        """For git's dumb protocol."""
        content = path.read_bytes() if path.is_file() else b""
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(subject: str, public: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey,
                extensions: list[x509.ExtensionType]) -> bytes:  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_certificates() -> ssl.SSLContext:
    ca, leaf = key(), key()
    sign = [False] * 9
    sign[5] = sign[6] = True  # key_cert_sign, crl_sign
    usage = x509.KeyUsage(*sign)
    authority = [x509.BasicConstraints(ca=True, path_length=0), usage]
    (SHARED / "ca.pem").write_bytes(certificate("the world", ca.public_key(), "the world", ca, authority))
    names = [x509.DNSName(host) for host in HOSTS] + [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    chain = certificate(HOSTS[0], leaf.public_key(), "the world", ca, [x509.SubjectAlternativeName(names)])
    private = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    Path("/tmp/leaf.pem").write_bytes(chain + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/tmp/leaf.pem")
    return context


def serve_web(port: int, tls: ssl.SSLContext | None) -> None:
    server = ThreadingHTTPServer(("", port), Recorder)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def make_upstream() -> None:
    script = """
        git config --global user.name "The World"
        git config --global user.email world@example.test
        git config --global safe.directory "*"
        git config --global init.defaultBranch main
        git init --quiet --bare /srv/upstream/demo.git
        git init --quiet /tmp/seed
        cd /tmp/seed
        echo "a repository" >README
        git add README
        git commit --quiet --message first
        git push --quiet /srv/upstream/demo.git HEAD:main
        git -C /srv/upstream/demo.git update-server-info
    """
    subprocess.run(["sh", "-ec", script], check=True)


def start_sshd() -> subprocess.Popen[bytes]:
    directory = SHARED / "ssh"
    directory.mkdir()
    for path in (directory / "id", Path("/etc/ssh/host_key")):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    os.chown(directory / "id", 1000, 1000)
    public = Path("/etc/ssh/host_key.pub").read_text()
    (directory / "known_hosts").write_text(f"[git.example.test]:2222 {public}")
    Path("/etc/ssh/agent_keys").write_text((directory / "id.pub").read_text())
    Path("/run/sshd").mkdir(exist_ok=True)
    Path("/etc/ssh/test_config").write_text(SSHD)
    return subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/test_config"])


def main() -> None:
    (SHARED / "requests.jsonl").touch()
    tls = make_certificates()
    serve_web(443, tls)
    serve_web(80, None)
    make_upstream()
    sshd = start_sshd()
    print("ready", flush=True)
    sshd.wait()


main()

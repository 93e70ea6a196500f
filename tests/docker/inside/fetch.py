"""One GET by way of a proxy, as an agent sends it; what came of it as JSON on stdout."""

from __future__ import annotations

import argparse
import http.client
import json
import re
import ssl
from urllib.parse import urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--proxy", default="127.0.0.1:9099")
parser.add_argument("--ca", help="the CA to trust for https")
parser.add_argument("--header", action="append", default=[], help="NAME=VALUE, more than once; Host too")
options = parser.parse_args()

url = urlsplit(options.url)
assert url.hostname
headers = dict(header.split("=", 1) for header in options.header)
connection: http.client.HTTPConnection
if url.scheme == "https":
    connection = http.client.HTTPSConnection(
        options.proxy, timeout=20, context=ssl.create_default_context(cafile=options.ca)
    )
    connection.set_tunnel(url.hostname, url.port or 443)
    target = url.path or "/"
else:
    connection = http.client.HTTPConnection(options.proxy, timeout=20)
    target = options.url
try:
    connection.request("GET", target, headers=headers)
    response = connection.getresponse()
    print(json.dumps({"status": response.status, "body": response.read().decode()}))
except OSError as error:
    refused = re.match(r"Tunnel connection failed: (\d+)", str(error))
    print(json.dumps({"status": int(refused[1]) if refused else 0, "body": str(error)}))

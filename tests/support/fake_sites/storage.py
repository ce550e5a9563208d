"""The storage origin: signed URLs that refuse credentials, byte ranges, and preview pictures."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from datetime import datetime, timezone
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from support.fake_sites.messages import Request, Response, text_response, xml_error
from support.fake_sites.pictures import MP4, picture
from support.fake_sites.world import World

LIFETIME = 86_400.0
_STAMP = "%Y%m%dT%H%M%S.%fZ"


class Signer:
    """Makes and checks short-lived URLs of the storage origin."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self.base = ""  # the storage origin, known once it listens

    def sign(self, path: str, seconds: float = LIFETIME, disposition: str | None = None) -> str:
        """A URL for that path (not yet percent-encoded) which dies after so many seconds."""
        query = {
            "X-Amz-Date": datetime.now(timezone.utc).strftime(_STAMP),
            "X-Amz-Expires": f"{seconds:g}",
        }
        if disposition is not None:
            query["response-content-disposition"] = disposition
        signature = self._signature(path, query)
        return f"{self.base}{quote(path)}?{urlencode({**query, 'X-Amz-Signature': signature})}"

    def resign(self, url: str, seconds: float) -> str:
        """The same URL with another lifetime."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        return self.sign(Request("", "GET", url, {}).path, seconds, query.get("response-content-disposition"))

    def refusal(self, request: Request) -> Response | None:
        """Why this request may not be served; None where it may."""
        if "authorization" in request.headers:
            return xml_error(400, "InvalidRequest", "Missing x-amz-content-sha256")
        if "token" in request.query:
            return xml_error(400, "InvalidRequest", "Unexpected query parameter token")
        query = {name: values[0] for name, values in request.query.items()}
        signature = query.pop("X-Amz-Signature", "")
        if request.method != "GET":  # signed for GET only
            return xml_error(403, "SignatureDoesNotMatch", "The request signature does not match")
        if not hmac.compare_digest(signature, self._signature(request.path, query)):
            return xml_error(403, "SignatureDoesNotMatch", "The request signature does not match")
        signed = datetime.strptime(query["X-Amz-Date"], _STAMP).replace(tzinfo=timezone.utc).timestamp()
        if time.time() >= signed + float(query["X-Amz-Expires"]):
            return xml_error(403, "ExpiredRequest", "Request has expired")
        return None

    def _signature(self, path: str, query: dict[str, str]) -> str:
        signed = path + "?" + urlencode(sorted(query.items()))
        return hmac.new(self._secret, signed.encode(), hashlib.sha256).hexdigest()


class Storage:
    """Routes of the storage origin."""

    def __init__(self, world: World, signer: Signer) -> None:
        self.world = world
        self.signer = signer
        self.blobs: dict[str, bytes] = {}  # LFS content of the hub, by sha256

    def answer(self, request: Request) -> Response:
        if request.path.startswith("/images/"):
            return self._image(request)
        refusal = self.signer.refusal(request)
        if refusal is not None:
            return refusal
        section, _, rest = request.path.strip("/").partition("/")
        key = rest.partition("/")[0]
        content, etag = self.blobs.get(key) if section == "blobs" else None, key[:32]
        if section == "files" and key.isdigit() and int(key) in self.world.contents:
            content, etag = self.world.content(int(key)), self.world.sha256(int(key))[:32].lower()
        if content is None:
            return xml_error(404, "NoSuchKey", "The specified key does not exist.")
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{etag}"',
            "Last-Modified": "Fri, 10 Feb 2023 18:05:00 GMT",
        }
        disposition = request.one("response-content-disposition")
        if disposition:  # the wire carries UTF-8, which header parsers read as latin-1
            one_line = "".join(c for c in disposition if c.isprintable())
            headers["Content-Disposition"] = one_line.encode().decode("latin-1")
        return ranged(request, content, headers)

    def _image(self, request: Request) -> Response:
        match = re.search(r"/(?:(width)=(\d+)|original=true)/(\d+)\.(\w+)$", request.path)
        if request.method not in ("GET", "HEAD") or match is None:
            return text_response(404, "Not found")
        image_id = int(match[3])
        if match[4] == "mp4":
            return ranged(request, MP4, {"Content-Type": "video/mp4"})
        size = ((64, 96), (80, 80))[image_id % 2]
        if match[1]:
            size = (min(size[0], int(match[2])), size[1])
        png = match[4] == "png"
        content = picture(image_id, size, "PNG" if png else "JPEG")
        headers = {"Content-Type": "image/png" if png else "image/jpeg", "ETag": f'"image-{image_id}"'}
        return ranged(request, content, headers)


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """The whole content, or the one range asked for: 200, 206 or 416."""
    headers = {"Accept-Ranges": "bytes", **headers}
    total = len(content)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "").strip())
    condition = request.headers.get("if-range")
    if match is None or not (match[1] or match[2]) or (condition and condition != headers.get("ETag")):
        return Response(200, headers, content)
    if match[1]:
        start = int(match[1])
        stop = min(int(match[2]) + 1, total) if match[2] else total
    else:
        start, stop = max(total - int(match[2]), 0), total
    if start >= total or start >= stop:
        refusal = xml_error(416, "InvalidRange", "The requested range is not satisfiable")
        refusal.headers["Content-Range"] = f"bytes */{total}"
        return refusal
    return Response(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{total}"}, content[start:stop])

"""What each fault does to a request before it is answered, and to the response after."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from support.fake_sites import downloads
from support.fake_sites.faults import Fault
from support.fake_sites.messages import Ledger, Request, Response, error, html, json_response, xml_error
from support.fake_sites.storage import Signer
from support.fake_sites.world import World

AGAIN = "|~1"  # a tail that makes another cursor for the same place, see listing.UNSORTED_TAIL
_LATIN1 = 'attachment; filename="ネオン Größe.pt"'
_DISPOSITIONS = {
    "traversal": 'attachment; filename="../../x"',
    "latin1": _LATIN1.encode().decode("latin-1"),
    "long": f'attachment; filename="{"n" * 297}.pt"',
}
_FAR = "2099-01-01T00:00:00.000Z"


@dataclass
class Stage:
    """What faults can reach."""

    world: World
    signer: Signer
    ledger: Ledger
    token: str
    stranger_url: str = ""


Effect = Callable[[Fault, Request, Response, Stage], Response]


def before(fault: Fault, request: Request, stage: Stage) -> Request:
    """The request as the routes shall see it."""
    if fault.kind == "D" and fault.options.get("mode", "ignored") == "ignored":
        return request.without("range")
    if fault.kind == "M":
        file_id = _file_id(request, stage)
        if file_id is not None:
            stage.world.replace_file(file_id)
    return request


def after(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    """The response as the client shall see it."""
    effect = _EFFECTS.get(fault.kind)
    return effect(fault, request, response, stage) if effect else response


def _file_id(request: Request, stage: Stage) -> int | None:
    """The file that a storage URL or a download URL is about."""
    parts = request.path.strip("/").split("/")
    if parts[0] == "files":
        return int(parts[1])
    wanted = request.one("fileId")
    if wanted is not None and wanted.isdigit():
        return int(wanted)
    if parts[-1].isdigit():
        try:
            files = stage.world.version(int(parts[-1]))[1]["files"]
        except KeyError:
            return None
        return next((file["id"] for file in files if file.get("primary")), None)
    return None


def _token_required(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    return response if request.token == stage.token else downloads.login_required()


def _redirected(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    if request.origin == "storage":
        return xml_error(400, "InvalidRequest", "Missing x-amz-content-sha256")
    if response.status == 307:
        response.status = 302
    return response


def _short_lived(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    if request.origin == "storage":
        return xml_error(403, "ExpiredRequest", "Request has expired")
    if "Location" in response.headers:
        seconds = float(fault.options.get("seconds", 0))
        response.headers["Location"] = stage.signer.resign(response.headers["Location"], seconds)
    return response


def _wrong_range(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    mode = fault.options.get("mode", "ignored")
    if mode == "416":
        total = response.headers.get("Content-Range", f"bytes 0-0/{len(response.body)}").rpartition("/")[2]
        refusal = xml_error(416, "InvalidRange", "The requested range is not satisfiable")
        refusal.headers["Content-Range"] = f"bytes */{total}"
        return refusal
    if mode == "wrong-start" and response.status == 206:
        span, _, total = response.headers["Content-Range"].removeprefix("bytes ").partition("/")
        start, _, stop = span.partition("-")
        wrong = int(start) - 1 if int(start) else 1
        response.headers["Content-Range"] = f"bytes {wrong}-{stop}/{total}"
    return response


def _cut(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    asked = fault.options.get("after")
    size = len(response.body)
    response.cut_after = min(size // 2 if asked is None else asked, size - 1)
    response.length = fault.options.get("content_length", True)
    response.reset = fault.options.get("reset", False)
    return response


def _slow(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    seconds = float(fault.options.get("seconds", 0.3))
    if fault.options.get("mode", "stall") == "drip":  # the body takes so long in all, whatever its size
        response.drip = max(1, fault.options.get("chunk", 1024))
        response.drip_seconds = seconds / max(1, -(-len(response.body) // response.drip))
    else:
        asked = fault.options.get("after")
        response.stall_after = len(response.body) // 2 if asked is None else asked
        response.stall_seconds = seconds
    return response


def _page_for_people(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    return html(200, "Civitai is down for maintenance")


def _too_many(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    message = "Too many requests"
    if request.path.startswith(downloads.PATH):
        message = "We've detected an unusual amount of downloading from your account"
    answer = error(429, message)
    wait = fault.options.get("retry_after", 2)
    if wait is not None:
        dated = fault.options.get("form") == "date"
        answer.headers["Retry-After"] = formatdate(time.time() + wait, usegmt=True) if dated else str(wait)
    if request.origin == "hub":
        answer.headers["RateLimit"] = f'"api";r=0;t={wait or 0}'
        answer.headers["RateLimit-Policy"] = '"fixed window";"api";q=500;w=300'
    return answer


def _unavailable(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    status = fault.options.get("status", 503)
    if status == 503:
        answer = error(503, "Model search is temporarily overloaded — please retry.")
    else:
        answer = html(status, f"{status} | Cloudflare")
    if fault.options.get("retry_after") is not None:
        answer.headers["Retry-After"] = str(fault.options["retry_after"])
    return answer


def _odd_page(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    page = response.json()
    if not isinstance(page, dict) or "items" not in page:
        return response
    cursor = request.one("cursor") or ""
    if fault.options.get("mode", "empty") == "empty":
        return json_response({"items": [], "metadata": {"nextCursor": cursor + AGAIN}})
    page["metadata"]["nextCursor"] = cursor or AGAIN
    return json_response(page)


def _control_characters(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    if response.status == 200:
        raw = response.body.replace(b'"description": "', b'"description": "\x0b\x1b[2J\x01')
        if raw.startswith(b'{"'):
            raw = b'{"notice": "raw\x08\tcharacters\x01", ' + raw[1:]
        response.body = raw
    return response


def _wrong_hashes(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    def change(record: dict[str, Any]) -> None:
        hashes = record.get("hashes")
        if hashes and "SHA256" in hashes and fault.options.get("file_id") in (None, record.get("id")):
            wrong = hashes["SHA256"][::-1]
            record["hashes"] = {**hashes, "SHA256": wrong, "AutoV2": wrong[:10]}

    return _changed(response, change)


def _refused(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    status = fault.options.get("status", 410)
    if status == 451:
        message = "This content is not available in your region"
        return json_response({"code": "REGION_BLOCKED", "message": message}, 451)
    if status == 403:
        return downloads.early_access(fault.options.get("deadline", _FAR))
    return downloads.archived()


def _for_browsers(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    if fault.options.get("mode", "redirect") == "html":
        return html(200, "Sign in to Civitai")
    return downloads.login_page(request.target)


def _missing(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    mode = fault.options.get("mode", "creator")

    def change(record: dict[str, Any]) -> None:
        if mode == "creator":
            record.pop("creator", None)
        elif mode == "username" and record.get("creator"):
            record["creator"] = {**record["creator"], "username": 31337}
        elif mode == "hashes" and "hashes" in record:
            record["hashes"] = {}
        elif mode == "files":
            record.pop("files", None)

    return _changed(response, change)


def _astray(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    host = request.headers.get("host", "")
    location = {
        "loop": f"http://{host}{request.target}",
        "stranger": f"{stage.stranger_url}/taken",
        "file": "file:///etc/hostname",
    }[fault.options.get("mode", "loop")]
    return Response(302, {"Location": location, "Cache-Control": "no-store"})


def _named(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    response.headers["Content-Disposition"] = _DISPOSITIONS[fault.options.get("mode", "traversal")]
    return response


def _compressed(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    if response.body:
        response.body = gzip.compress(response.body, mtime=0)
        response.headers["Content-Encoding"] = "gzip"
    return response


def _with_nulls(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    versions = response.json()
    return json_response([None, *versions, None, *versions[:1]]) if isinstance(versions, list) else response


def _crowded(fault: Fault, request: Request, response: Response, stage: Stage) -> Response:
    if stage.ledger.in_flight(request.origin) <= fault.options.get("limit", 4):
        return response
    return error(429, "Too many requests")


_EFFECTS: dict[str, Effect] = {
    "A": _token_required,
    "B": _redirected,
    "C": _short_lived,
    "D": _wrong_range,
    "E": _cut,
    "F": _slow,
    "G": _page_for_people,
    "H": _too_many,
    "I": _unavailable,
    "J": _odd_page,
    "K": _control_characters,
    "L": _wrong_hashes,
    "N": _refused,
    "O": _for_browsers,
    "P": _missing,
    "Q": _astray,
    "R": _named,
    "S": _compressed,
    "T": _with_nulls,
    "U": _crowded,
}


def _changed(response: Response, change: Callable[[dict[str, Any]], None]) -> Response:
    """The JSON body with every record in it changed; other bodies stay."""

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            change(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    content = response.json()
    if content is not None:
        walk(content)
        response.body = json.dumps(content, ensure_ascii=False).encode()
    return response

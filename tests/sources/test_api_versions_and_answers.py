"""The API: versions that come and go, descriptions, sizes of answers, addresses, pictures, nonsense."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Fault, Sites, World
from support.fake_sites.messages import Response, html, json_response
from support.fetching import EVERYTHING, installed, jobs_of
from support.odd_answers import OpenSession, answering, everything_kept, first_version, listed

from hnetkit.errors import Archived, AuthRequired, Gone, NetworkFailed, RateLimited, RemoteError
from hnetkit.sources import http
from hnetkit.sources.civitai import Filters
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import check_unlisted, find_updates

LEVELS: list[tuple[dict[str, Any], bool]] = [
    ({"nsfwLevel": 1}, True),
    ({"nsfwLevel": 2}, True),
    ({"nsfwLevel": 4}, False),
    ({"nsfwLevel": 9}, False),
    ({"nsfwLevel": 32}, False),
    ({"nsfwLevel": "None"}, True),
    ({"nsfwLevel": "Soft"}, True),
    ({"nsfwLevel": "Mature"}, False),
    ({"nsfwLevel": "X"}, False),
    ({"nsfw": "Soft"}, True),
    ({"nsfw": "X"}, False),
    ({"nsfw": True}, False),
    ({"nsfwLevel": None, "nsfw": "X"}, False),
]

NONSENSE = {
    "empty": Response(200, {"Content-Type": "application/json"}, b""),
    "page": html(200, "Sign in"),
    "half": Response(200, {"Content-Type": "application/json"}, b'{"id": 1, "name'),
    "binary": Response(200, {"Content-Type": "application/json"}, b"\x80\x02\xff\x00"),
    "deep": Response(200, {"Content-Type": "application/json"}, b"[" * 100_000),
    "long number": Response(200, {"Content-Type": "application/json"}, b'{"id": ' + b"9" * 5000 + b"}"),
    "no status text": Response(599, {}, b""),
    "null": json_response(None),
    "list": json_response([]),
    "error with 200": json_response({"error": "Internal"}),
    "odd pause": Response(503, {"Retry-After": "\u00b2"}),
    "pause in words": Response(503, {"Retry-After": "soon"}),
    "empty redirect": Response(302, {"Location": ""}),
}


def test_the_newest_version_is_the_newest_by_date_wherever_it_stands(sites: Sites, session: FetchSession) -> None:
    data = sites.world.model(sites.world.find("out of order")[0])
    first, second = data["modelVersions"]
    assert first["publishedAt"] < second["publishedAt"]
    (job,) = jobs_of(session, session.pull(f"model:{data['id']}"))
    assert job.key == f"civitai:{second['files'][0]['id']}"


def test_a_version_that_vanished_is_marked_and_its_file_stays(open_session: OpenSession) -> None:
    with Sites(World.make(6, plain=True)) as sites:
        id = next(m["id"] for m in sites.world.models if len(m["modelVersions"]) == 2)
        session = open_session(sites)
        session.pull(f"model:{id}", all_versions=True)
        gone, kept = (version["id"] for version in sites.world.model(id)["modelVersions"])
        sites.world.remove_version(gone)
        assert dict(check_unlisted(session.registry, session.civitai, session.clock, [str(id)])) == {str(id): "listed"}
        rows = [row for row in session.registry.catalogue.files() if row["model_id"] == str(id)]
        assert {row["version_id"]: row["version_state"] for row in rows} == {str(gone): "gone", str(kept): "listed"}
        assert len(installed(session)) == 2
        assert all(path.is_file() for path in installed(session).values())


def test_an_empty_list_of_versions_is_a_fault_of_the_site_and_marks_nothing(site: Sites, here: FetchSession) -> None:
    id = site.world.ids()[0]
    here.pull(f"model:{id}")
    data = site.world.model(id)
    versions = list(data["modelVersions"])
    data["modelVersions"].clear()
    list(check_unlisted(here.registry, here.civitai, here.clock, [str(id)]))
    data["modelVersions"].extend(versions)
    rows = [row for row in here.registry.catalogue.files() if row["model_id"] == str(id)]
    assert {row["version_state"] for row in rows} == {"listed"}


def test_a_deleted_model_is_gone_and_an_archived_one_says_so(site: Sites, here: FetchSession) -> None:
    deleted, archived, _ = site.world.ids()
    here.sync(EVERYTHING, all_versions=True)
    files = set(installed(here).values())
    site.world.remove(deleted)
    site.world.archive(archived)
    with pytest.raises(Gone) as caught:
        here.pull(f"model:{deleted}")
    assert not isinstance(caught.value, Archived)
    with pytest.raises(Archived):
        here.pull(f"model:{archived}")
    states = dict(check_unlisted(here.registry, here.civitai, here.clock, [str(deleted), str(archived)]))
    assert states == {str(deleted): "gone", str(archived): "archived"}
    assert set(installed(here).values()) == files
    assert all(path.is_file() for path in files)
    rows = [row for row in here.registry.catalogue.files() if row["model_id"] == str(archived)]
    assert rows, "what is known of its files is kept"


def test_one_deleted_model_does_not_hide_the_updates_of_the_others(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    deleted, other, _ = site.world.ids()
    version = site.world.add_version(other)
    site.world.remove(deleted)
    assert [update.newest.version_id for update in find_updates(here.registry, here.civitai)] == [version["id"]]


def test_one_deleted_model_of_several_asked_for_does_not_hide_the_others(site: Sites, here: FetchSession) -> None:
    ids = site.world.ids()
    site.world.remove(ids[0])
    assert set(listed(here.civitai, Filters(ids=tuple(ids)))) == set(ids[1:])


def test_a_description_is_shown_without_tags_and_without_what_steers_a_terminal(
    site: Sites, here: FetchSession
) -> None:
    id = site.world.ids()[0]
    html = "<p>Soft &amp; wet.\x1b]0;owned\x07</p><script>x()</script><p>\x9b2J12k&nbsp;steps &#27;[31m</p>"
    site.world.model(id)["description"] = html
    here.pull(f"model:{id}")
    row = here.registry.catalogue.model("civitai", str(id))
    assert row["description"] == "Soft & wet.]0;owned\n2J12k steps [31m"


def test_raw_control_characters_in_json_are_read_and_not_shown(site: Sites, here: FetchSession) -> None:
    site.faults.add(Fault("K", "api", times=9))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert site.faults.fired
    assert job.state == "done"
    row = here.registry.catalogue.model("civitai", str(site.world.ids()[0]))
    assert all(line.isprintable() for line in row["description"].split("\n"))


def test_an_answer_of_any_size_is_read_up_to_a_limit() -> None:
    """A few packed kilobytes can be gigabytes."""
    body = gzip.compress(b'{"items": [' + b" " * (http.MOST_JSON + 1) + b"]}", 1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with (
        answering(lambda request: Response(200, headers, body)) as (civitai, _),
        pytest.raises(NetworkFailed, match="64 MB"),
    ):
        listed(civitai)


def test_a_page_of_megabytes_is_read_and_its_json_is_kept_packed(site: Sites, here: FetchSession) -> None:
    id = site.world.ids()[0]
    image = first_version(site)["images"][0]
    image["meta"] = {"prompt": "harbour at night " * 200_000, "comfy": {"nodes": [{"id": n} for n in range(1000)]}}
    here.pull(f"model:{id}")
    (packed,) = here.registry.catalogue._db.execute("SELECT raw FROM models WHERE remote_id = ?", [str(id)]).fetchone()
    raw = zlib.decompress(packed)
    assert len(packed) * 20 < len(raw) > 3 << 20
    kept = here.registry.catalogue.raw("civitai", str(id))
    assert kept["modelVersions"][0]["images"][0]["meta"] == image["meta"]


def test_an_answer_that_stalls_is_asked_for_again(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_S", (1.0, 0.2))
    site.faults.add(Fault("F", "api", times=2, mode="stall", seconds=1.0, match="/api/v1/models"))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "done"
    assert len([r for r in site.requests if r.path.endswith(f"/models/{site.world.ids()[0]}")]) == 3


def test_an_address_that_expires_is_kept_nowhere(site: Sites, home: Path, open_session: OpenSession) -> None:
    done, broken, _ = site.world.ids()
    session = open_session(site)
    jobs_of(session, session.pull(f"model:{done}"))
    site.faults.add(Fault("E", "storage", times=50, after=2000))
    (job,) = jobs_of(session, session.pull(f"model:{broken}"))
    assert (job.state, job.code) == ("failed", "network")
    (note,) = session.folder.glob(".hnetkit-*.part.json")
    assert json.loads(note.read_text())["key"] == job.key
    assert note.with_suffix("").stat().st_size > 0, "what came is there for the next time"
    kept = everything_kept(home) + "".join(
        json.dumps(session.registry.catalogue.raw("civitai", str(id))) for id in (done, broken)
    )
    storage = site.storage_url.removeprefix("http://")
    for secret in ("X-Amz-", "Signature", f"{storage}/files", site.token):
        assert secret not in kept
    assert job.url == site.download_url(*map(int, re.findall(r"\d+", job.url.partition("/models/")[2])))
    site.clear()
    (again,) = jobs_of(session, session.pull(f"model:{broken}"))
    assert again.state == "done"
    (request,) = [r for r in site.requests if r.origin == "storage" and r.path.startswith("/files/")]
    assert request.headers["range"].startswith("bytes=")


def test_a_picture_is_fetched_by_its_level_in_bits_or_in_words(open_session: OpenSession) -> None:
    with Sites(World.make(len(LEVELS), plain=True)) as sites:
        said: dict[str, tuple[dict[str, Any], bool]] = {}
        for model, level in zip(sites.world.models, LEVELS, strict=True):
            for version in model["modelVersions"]:
                for image in version["images"]:
                    image.pop("nsfwLevel", None)
                    image |= {"type": "image", **level[0]}
                    said[str(image["id"])] = level
        session = open_session(sites)
        for id in sites.world.ids():
            session.pull(f"model:{id}")
        fetched = [said[Path(r.path).stem] for r in sites.requests if r.path.startswith("/images/")]
        assert [level for level, safe in fetched if not safe] == []
        assert {str(level) for level, _ in fetched} == {str(level) for level, safe in LEVELS if safe}


def test_pictures_of_any_level_come_to_who_asks_for_them(site: Sites, open_session: OpenSession) -> None:
    for image in first_version(site)["images"]:
        image["nsfwLevel"] = 16
    open_session(site, nsfw=True).pull(f"model:{site.world.ids()[0]}")
    assert [r for r in site.requests if r.path.startswith("/images/")]


def test_the_guards_403_is_not_about_who_asks(site: Sites, here: FetchSession) -> None:
    site.faults.add(Fault("I", "api", times=50, status=403))
    with pytest.raises(NetworkFailed, match="firewall") as caught:
        here.pull(f"model:{site.world.ids()[0]}")
    assert caught.value.exit_code == 5
    assert len(site.requests) == 1, "asking on would make it worse"


def test_a_web_page_with_a_5xx_passes(site: Sites, here: FetchSession) -> None:
    for status in (500, 502, 503, 504, 520, 522, 524, 527):
        site.clear()
        site.faults.add(Fault("I", "api", times=3, status=status))
        assert here.civitai.model(site.world.ids()[0]).id == site.world.ids()[0]
        assert [r.status for r in site.requests] == [status, status, status, 200]


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_answer_that_makes_no_sense_is_a_failure_in_words_and_never_a_crash(answer: str) -> None:
    with answering(lambda request: NONSENSE[answer]) as (civitai, ledger):
        for ask in (lambda: civitai.model(1), lambda: civitai.version(1), lambda: listed(civitai)):
            with pytest.raises(RemoteError) as caught:
                ask()
            assert str(caught.value).isprintable()
            assert not isinstance(caught.value, AuthRequired | Gone | RateLimited)
        asked = [(r.path, r.query.get("limit"), r.query.get("sort")) for r in ledger.entries()]
        assert all(len(list(same)) <= 6 for _, same in itertools.groupby(asked))
        assert len(asked) < 30


@pytest.mark.parametrize("answer", ["empty", "page", "null", "list", "error with 200"])
def test_an_answer_that_makes_no_sense_is_no_proof_that_a_token_is_good(answer: str) -> None:
    with answering(lambda request: NONSENSE[answer]) as (civitai, _), pytest.raises(RemoteError):
        civitai.me()


def test_an_empty_answer_is_asked_for_again() -> None:
    answers = iter([Response(200), html(200, "Maintenance"), Response(502), json_response({"id": 1})])
    with answering(lambda request: next(answers)) as (civitai, _):
        assert civitai.model(1).id == 1

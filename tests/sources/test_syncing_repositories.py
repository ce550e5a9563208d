"""`sync hf:owner/repo`: a repository of the hub, its new and changed files alone, by what the hub states of them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants
from support.fake_sites import Fault, Sites, World
from support.fake_sites.messages import Request, Response
from support.fetching import installed
from support.odd_answers import network_bytes, zipped

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import AuthRequired, Gone, NetworkFailed, NotFound, UsageError
from hnetkit.sources.huggingface import LARGE
from hnetkit.sources.results import FetchResult
from hnetkit.sources.session import FetchSession

REPO = "anna/nets"
OpenSession = Callable[..., FetchSession]
Capture = pytest.CaptureFixture[str]
INK, OIL, CHALK = (network_bytes(seed) for seed in (1, 2, 3))
PAGE = b"<html>nothing</html>" * 400
FILES = {"README.md": b"# nets\n", "styles/ink.pt": INK, "styles/page.pt": PAGE, "old/oil.pt": OIL}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    with Sites(World.make(2, plain=True), repos={REPO: FILES}) as sites:
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield sites


@pytest.fixture
def here(hub: Sites, open_session: OpenSession) -> FetchSession:
    return open_session(hub)


def states(results: list[FetchResult]) -> dict[str, str]:
    return {Path(result.name).name: result.state for result in results}


def downloads(sites: Sites) -> list[str]:
    """The files that were asked for since the last `clear`."""
    return [entry.path.rpartition("/")[2] for entry in sites.requests if "/resolve/" in entry.path]


# --- what is new


def test_a_repository_comes_and_is_then_known_by_one_request(hub: Sites, here: FetchSession) -> None:
    assert states(here.sync(f"hf:{REPO}")) == {"ink.pt": "done", "page.pt": "refused", "oil.pt": "done"}
    hub.clear()
    assert states(here.sync(f"hf:{REPO}")) == {"page.pt": "skipped"}
    assert [(entry.origin, entry.path) for entry in hub.requests] == [("hub", f"/api/models/{REPO}")]


def test_two_formats_of_one_network_are_not_called_two_networks(hub: Sites, here: FetchSession, tmp_path: Path) -> None:
    (tmp_path / "moss.pt").write_bytes(INK)
    hnetkit.save(hnetkit.load(tmp_path / "moss.pt"), tmp_path / "moss.safetensors")
    hub.hub.add("anna/moss", {name: (tmp_path / name).read_bytes() for name in ("moss.pt", "moss.safetensors")})
    results = here.sync("hf:anna/moss")
    (first,) = (Path(result.paths[0]).name for result in results if result.code is None)
    (reason,) = (result.reason for result in results if result.code == "named")
    assert reason == f"the same network is there as {first}"


def test_of_networks_that_come_at_once_under_one_name_each_gets_its_own(hub: Sites, here: FetchSession) -> None:
    files = {
        f"ink{n}{suffix}": network_bytes(2 * n + (suffix == ".ckpt")) for n in range(12) for suffix in (".pt", ".ckpt")
    }
    hub.hub.add("anna/pairs", files)
    here.sync("hf:anna/pairs")
    stems = [path.stem for path in installed(here).values()]
    assert len(stems) == len(set(stems)) == len(files)


def test_no_name_is_taken_while_another_process_takes_one(hub: Sites, here: FetchSession) -> None:
    other = FileLock(here.registry.path.parent / "locks" / "names.lock", thread_local=False)
    Path(other.lock_file).parent.mkdir(exist_ok=True)
    other.acquire()
    there = []

    def end_of_the_other() -> None:
        there.extend(path.name for path in here.library.folder.rglob("*.pt"))
        other.release()

    ending = threading.Timer(0.5, end_of_the_other)
    ending.start()
    here.sync(f"hf:{REPO}")
    ending.join()
    assert there == []
    assert len(installed(here)) == 2


def test_only_what_a_commit_adds_or_changes_is_fetched(hub: Sites, here: FetchSession) -> None:
    here.sync(f"hf:{REPO}")
    hub.clear()
    hub.hub.commit(REPO, {**FILES, "README.md": b"more", "styles/chalk.pt": CHALK, "old/oil.pt": network_bytes(4)})
    assert states(here.sync(f"hf:{REPO}")) == {"chalk.pt": "done", "oil.pt": "done", "page.pt": "skipped"}
    assert sorted(downloads(hub)) == ["chalk.pt", "oil.pt"], "neither what is here nor what was refused"
    assert len(installed(here)) == 4, "the former oil.pt is kept"


def test_a_file_that_moves_is_here(hub: Sites, here: FetchSession) -> None:
    here.sync(f"hf:{REPO}")
    hub.clear()
    hub.hub.commit(REPO, {"new/ink.pt": INK, "new/page.pt": PAGE, "oil.pt": OIL, "oil copy.pt": OIL})
    assert states(here.sync(f"hf:{REPO}")) == {"page.pt": "skipped"}
    assert downloads(hub) == []


def test_a_file_in_git_itself_is_known_by_gits_own_hash(hub: Sites, here: FetchSession) -> None:
    hub.hub.add("anna/small", {"git/ink.pt": INK, "git/page.pt": b"nothing" * 99})
    assert all(file.sha256 is None for file in here.plan("hf:anna/small").listings[0].files)
    assert states(here.sync("hf:anna/small")) == {"ink.pt": "done", "page.pt": "refused"}
    assert len(installed(here)) == 1
    hub.clear()
    hub.hub.commit("anna/small", {"git/ink.pt": INK, "git/page.pt": b"nothing" * 99, "README.md": b"new"})
    here.sync("hf:anna/small")
    assert downloads(hub) == []
    hub.hub.commit("anna/small", {"git/ink.pt": OIL})
    here.sync("hf:anna/small")
    assert downloads(hub) == ["ink.pt"]


@pytest.mark.parametrize("answer", [b"you should not have come here\n" * 200, network_bytes(9), INK[:-1] + b"?"])
def test_other_bytes_than_the_hub_lists_of_a_file_in_git_itself_are_not_taken_for_it(
    hub: Sites, here: FetchSession, answer: bytes
) -> None:
    hub.hub.add("anna/small", {"git/ink.pt": INK})
    hub.alter = lambda request, response: Response(200, {}, answer) if "/resolve/" in request.path else response
    (result,) = here.sync("hf:anna/small")
    assert (result.state, result.code) == ("refused", "wrong-bytes")
    assert result.reason is not None
    assert result.reason.startswith("ink.pt: other bytes than the site lists, with the sha256 ")
    assert len(downloads(hub)) == 2
    assert installed(here) == {}
    hub.alter = lambda request, response: response
    assert states(here.sync("hf:anna/small")) == {"ink.pt": "done"}
    assert list(installed(here)) == [hashlib.sha256(INK).hexdigest()]


def test_what_is_missing_here_is_fetched_again_though_nothing_was_committed(hub: Sites, here: FetchSession) -> None:
    here.sync(f"hf:{REPO}")
    installed(here)[hashlib.sha256(INK).hexdigest()].unlink()
    assert states(here.sync(f"hf:{REPO}"))["ink.pt"] == "done"


def test_files_that_are_deleted_at_the_hub_are_kept_and_said_once(hub: Sites, here: FetchSession) -> None:
    here.sync(f"hf:{REPO}")
    hub.hub.commit(REPO, {"styles/ink.pt": INK})
    (result,) = here.sync(f"hf:{REPO}")
    assert (result.state, result.name, "kept here" in str(result.reason)) == ("gone", "old/oil.pt", True)
    assert Path(result.paths[0]).read_bytes() == OIL
    assert here.sync(f"hf:{REPO}") == []


def test_what_is_deleted_at_one_revision_is_said_though_another_was_listed_since(
    hub: Sites, here: FetchSession
) -> None:
    hub.hub.commit(REPO, {"oil.pt": OIL, "chalk.pt": CHALK}, branch="draft")
    for text in (f"hf:{REPO}", f"hf:{REPO}@draft"):
        here.sync(text)
    hub.hub.commit(REPO, {"styles/ink.pt": INK})
    hub.hub.commit(REPO, {"oil.pt": OIL}, branch="draft")
    assert states(here.sync(f"hf:{REPO}@draft")) == {"chalk.pt": "gone"}
    assert states(here.sync(f"hf:{REPO}")) == {"oil.pt": "gone"}
    for text in (f"hf:{REPO}@draft", f"hf:{REPO}"):
        assert here.sync(text) == []


def test_a_file_that_is_deleted_at_the_hub_is_said_whatever_is_asked_for(hub: Sites, here: FetchSession) -> None:
    here.sync(f"hf:{REPO}")
    hub.hub.commit(REPO, {"styles/ink.pt": INK})
    assert states(here.pull(f"hf:{REPO}:styles/ink.pt")) == {"ink.pt": "have", "oil.pt": "gone"}
    hub.hub.commit(REPO, {"styles/chalk.pt": CHALK})
    assert states(here.sync(f"hf:{REPO}:styles/chalk.pt")) == {"chalk.pt": "done", "ink.pt": "gone"}


def test_a_list_that_is_cut_says_nothing_of_what_is_gone_there_and_all_of_other_repositories(
    hub: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hub.add("anna/few", {"chalk.pt": CHALK, "page.pt": PAGE})
    here.pull(f"hf:{REPO}", "hf:anna/few")
    hub.hub.commit(REPO, {**FILES, "README.md": b"more"})
    hub.hub.commit("anna/few", {"page.pt": PAGE})
    monkeypatch.setattr("hnetkit.sources.huggingface.LARGE", 1)
    monkeypatch.setattr("hnetkit.sources.huggingface.MOST_LISTED", 2)
    plan = here.plan_pull(f"hf:{REPO}:*/*.pt", "hf:anna/few")
    assert [bad.cuts_list for bad in plan.failed] == [True]
    assert [item.name for item in plan.lost] == ["chalk.pt"]


def test_what_was_removed_does_not_come_back(hub: Sites, here: FetchSession, capsys: Capture) -> None:
    here.sync(f"hf:{REPO}")
    assert run(["remove", "-y", "oil"]) == 0
    results = {result.name: result.code for result in here.sync(f"hf:{REPO}")}
    assert results["old/oil.pt"] == "removed"
    assert states(here.pull(f"hf:{REPO}:old/oil.pt")) == {"oil.pt": "done"}, "who names it wants it"


@pytest.mark.parametrize("chosen", ["styles", "styles/", "styles/i*.pt"])
def test_a_folder_or_a_glob_chooses(hub: Sites, here: FetchSession, chosen: str) -> None:
    assert "oil.pt" not in states(here.sync(f"hf:{REPO}:{chosen}"))
    assert states(here.sync(f"{hub.hub_url}/{REPO}/tree/main/styles")) == (
        {"page.pt": "skipped"} if "*" not in chosen else {"page.pt": "refused"}
    )


def test_a_data_set_and_a_revision(hub: Sites, here: FetchSession) -> None:
    hub.hub.add("datasets/anna/more", {"chalk.pt": CHALK})
    hub.hub.commit("datasets/anna/more", {"oil.pt": OIL}, branch="draft")
    assert states(here.sync("hf:datasets/anna/more")) == {"chalk.pt": "done"}
    assert states(here.sync("hf:datasets/anna/more@draft")) == {"oil.pt": "done"}
    assert here.sync("hf:datasets/anna/more") == [], "a branch that lacks a file says nothing about another one"


def test_an_archive_is_fetched_once(hub: Sites, here: FetchSession) -> None:
    pack = zipped({"one.pt": INK, "two.pt": OIL})
    hub.hub.add("anna/packed", {"pack.zip": pack})
    assert states(here.sync("hf:anna/packed:*.zip")) == {"pack.zip": "done"}
    hub.hub.commit("anna/packed", {"pack.zip": pack, "README.md": b"x"})
    hub.clear()
    assert here.sync("hf:anna/packed:*.zip") == []
    assert downloads(hub) == []


# --- many files


def test_a_second_sync_of_two_thousand_files_makes_one_request(
    hub: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"Civitai/user{n % 50}/{n}.pt": b"%d" % n for n in range(2000)}
    hub.hub.add("anna/many", {**many, "ink.pt": INK})
    hub.hub.most_siblings = 1000
    plan = here.plan("hf:anna/many")
    assert len(plan.to_fetch) == 2001
    assert [entry.path.partition("/tree/")[1] for entry in hub.requests] == ["", "/tree/", "/tree/", "/tree/"]
    sha256s = {item.sha256: item for item in plan.items}
    assert hashlib.sha256(INK).hexdigest() in sha256s
    plan.items = [item for item in plan.items if item.name == "ink.pt"]  # what two thousand would be told of, one is
    here.carry_out(plan)
    for item in here.plan("hf:anna/many").to_fetch:
        path = here.folder / f"{item.sha256}.pt"
        path.write_bytes(many[item.name])
    hub.clear()
    again = here.plan("hf:anna/many")
    assert len(again.items) == 2001
    assert len(hub.requests) == 1
    hub.hub.commit("anna/many", {**many, "ink.pt": INK, "README.md": b"x"})
    hub.clear()
    here.plan("hf:anna/many")
    assert len(hub.requests) == 4, "one listing"
    assert downloads(hub) == []


def test_a_listing_that_repeats_itself_or_breaks_off_is_a_failure_and_the_next_one_goes_on(
    hub: Sites, here: FetchSession
) -> None:
    hub.hub.add("anna/many", {f"{n}.pt": b"%d" % n for n in range(9)})
    hub.hub.most_siblings, hub.hub.page_size = 0, 4

    def siblings_cut(request: Request, response: Response) -> Response:
        if request.path == "/api/models/anna/many" and response.status == 200:
            response.body = json.dumps({**response.json(), "siblings": None}).encode()
        return response

    def circular(request: Request, response: Response) -> Response:
        if "/tree/" in request.path:
            response.headers["Link"] = f'<{hub.stranger_url}/x?cursor=4>; rel="next"'
        return siblings_cut(request, response)

    hub.alter = circular
    with pytest.raises(NetworkFailed, match="repeats itself"):
        here.plan("hf:anna/many")
    assert not [entry for entry in hub.requests if entry.origin == "stranger"]
    hub.alter = siblings_cut
    assert len(here.plan("hf:anna/many").to_fetch) == 9
    hub.faults.add(Fault("I", "hub", status=500, times=100))
    with pytest.raises(NetworkFailed):
        here.plan("hf:anna/many")
    hub.faults.clear()
    assert len(here.plan("hf:anna/many").to_fetch) == 9


@pytest.mark.parametrize("link", ["http://[", "https://hub.example/x", "https://hub.example/x?page=2"])
def test_a_listing_that_goes_on_nobody_knows_where_is_a_failure_and_not_cut_in_silence(
    hub: Sites, here: FetchSession, link: str
) -> None:
    hub.hub.add("anna/many", {f"{n}.pt": b"%d" % n for n in range(LARGE + 1)})

    def next_at(request: Request, response: Response) -> Response:
        if "/tree/" in request.path:
            response.headers["Link"] = f'<{link}>; rel="next"'
        return response

    hub.alter = next_at
    with pytest.raises(NetworkFailed, match="goes on at no address"):
        here.plan("hf:anna/many")


# --- what stands in the way


def test_a_gated_repository_says_where_to_ask_and_goes_on_later(
    hub: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hub.add("anna/gated", {"ink.pt": INK}, gated=True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for token in (None, hub.hub_token):
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(AuthRequired, match=f"{hub.hub_url}/anna/gated, with the account of HF_TOKEN") as error:
            here.sync("hf:anna/gated")
        assert ("export HF_TOKEN" in str(error.value.command_hint)) == (token is None)
    assert downloads(hub) == []
    hub.hub.repos["anna/gated"].admitted = True
    assert states(here.sync("hf:anna/gated")) == {"ink.pt": "done"}
    hub.hub.repos["anna/gated"].admitted = False
    assert here.sync("hf:anna/gated") == [], "nothing is asked for where there is nothing to fetch"


def test_a_renamed_repository_is_followed_and_its_new_name_is_said(hub: Sites, here: FetchSession) -> None:
    here.sync(f"hf:{REPO}")
    hub.hub.rename(REPO, "anna/networks")
    hub.clear()
    with pytest.warns(UserWarning, match=f"{REPO}: the repository is named anna/networks by now"):
        assert states(here.sync(f"hf:{REPO}")) == {"page.pt": "skipped"}
    hub.hub.commit("anna/networks", {**FILES, "chalk.pt": CHALK})
    with pytest.warns(UserWarning, match="anna/networks"):
        assert states(here.sync(f"hf:{REPO}")) == {"chalk.pt": "done", "page.pt": "skipped"}
    assert downloads(hub) == ["chalk.pt"]


def test_a_new_name_that_begins_like_the_former_is_said_too(hub: Sites, here: FetchSession) -> None:
    hub.hub.rename(REPO, f"{REPO}-2")
    with pytest.warns(UserWarning, match=f"{REPO}: the repository is named {REPO}-2 by now"):
        here.plan(f"hf:{REPO}")


def test_a_redirect_to_another_site_is_not_followed_for_a_listing(hub: Sites, here: FetchSession) -> None:
    def elsewhere(request: Request, response: Response) -> Response:
        is_info = request.path == f"/api/models/{REPO}"
        return Response(307, {"Location": f"{hub.civitai_url}/models"}) if is_info else response

    hub.alter = elsewhere
    with pytest.raises(NetworkFailed, match="leads to another site"):
        here.sync(f"hf:{REPO}")


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("hf:anna/none", Gone, "no such repository"),
        ("hf:anna/hidden", Gone, "or it is private"),
        ("hf:anna/nets@v9", Gone, "no revision v9"),
        ("hf:anna/empty", Gone, "it has no file"),
        ("hf:anna/pictures", Gone, r"it has 3 files \(2 \.png, 1 \.md\)"),
        ("hf:anna/nets:nowhere", Gone, "no model file matches"),
        ("hf:anna", UsageError, "not a recognized reference"),
        ("nothing", NotFound, "no filters were saved as nothing"),
    ],
)
def test_what_cannot_be_synced_is_one_line(
    hub: Sites, here: FetchSession, text: str, kind: type[Exception], said: str
) -> None:
    hub.hub.add("anna/hidden", {"ink.pt": INK}, private=True)
    hub.hub.add("anna/empty", {})
    hub.hub.add("anna/pictures", {"a.png": b"1", "b/c.png": b"2", "README.md": b"3"})
    with pytest.raises(kind, match=said):
        here.sync(text)


def test_a_repository_or_revision_that_is_not_there_is_answered_with_what_to_check(
    hub: Sites, here: FetchSession
) -> None:
    for text, hint in {
        "hf:anna/none": "check the name; if it is private: ",
        "hf:anna/nets@v9": "give a branch",
    }.items():
        for fetch in (here.sync, here.pull):
            with pytest.raises(Gone) as caught:
                fetch(text)
            assert str(caught.value.command_hint).startswith(hint)


def test_where_no_model_file_matches_the_hint_is_what_has_some(hub: Sites, here: FetchSession) -> None:
    hub.hub.add("anna/pictures", {"a.png": b"1"})
    for text, hint in {
        "hf:anna/nets@main:nowhere": "hf:anna/nets@main stands for all its model files (3)",
        "hf:anna/pictures": None,
    }.items():
        for fetch in (here.sync, here.pull):
            with pytest.raises(Gone) as caught:
                fetch(text)
            assert caught.value.command_hint == hint


def test_a_download_that_was_stopped_goes_on_after_another_commit(hub: Sites, here: FetchSession) -> None:
    large = network_bytes(5)
    hub.hub.add("anna/large", {"large.pt": large})
    hub.faults.add(Fault("E", "storage", after=len(large) // 2, times=100))
    (failed,) = here.sync("hf:anna/large")
    assert failed.state == "failed"
    hub.clear()
    hub.hub.commit("anna/large", {"large.pt": large, "README.md": b"x"})
    assert states(here.sync("hf:anna/large")) == {"large.pt": "done"}
    ranges = [entry.headers.get("range", "bytes=0-") for entry in hub.requests if entry.origin == "storage"]
    assert all(int(text[6:-1]) >= len(large) // 2 for text in ranges)


# --- subscriptions, and the command


def test_a_repository_is_saved_listed_synced_and_removed(hub: Sites, capsys: Capture, home: Path) -> None:
    assert run(["sync", f"hf:{REPO}:styles", "--save", "anna", "--json"]) == 1, "page.pt is refused"
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"done", "refused"}
    assert run(["sync", "--subscriptions", "--json"]) == 0
    (saved,) = json.loads(capsys.readouterr().out)
    assert (saved["name"], saved["filters"]) == ("anna", {"repository": f"hf:{REPO}:styles"})
    assert saved["synced_at"]
    hub.hub.commit(REPO, {"styles/chalk.pt": CHALK})
    assert run(["sync", "anna", "--json"]) == 0
    told = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert told == {"chalk.pt": "done", "styles/ink.pt": "gone"}
    assert run(["sync", "--remove", "anna", "-q"]) == 0
    assert run(["sync", "anna"]) == 4


@pytest.mark.parametrize("name", [f"hf:{REPO}", "https://huggingface.co/anna/nets", "hf:anna"])
def test_nothing_is_saved_under_a_name_by_which_sync_would_mean_a_repository(
    hub: Sites, capsys: Capture, home: Path, name: str
) -> None:
    for of in ([f"hf:{REPO}:styles"], ["--tag", "x"]):
        assert run(["sync", *of, "--save", name]) == 2
        assert "Hint: choose another name" in capsys.readouterr().err
    assert run(["sync", "--subscriptions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "option", [["--creator", "x"], ["--tag", "x"], ["--query", "x"], ["--nsfw"], ["--favorites"], ["--all-versions"]]
)
def test_options_of_civitai_are_refused_beside_a_repository(hub: Sites, option: list[str], capsys: Capture) -> None:
    assert run(["sync", f"hf:{REPO}", *option]) == 2
    assert "Civitai" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_writes_nothing(hub: Sites, home: Path, capsys: Capture) -> None:
    assert run(["sync", f"hf:{REPO}", "--dry-run", "--save", "anna", "--json"]) == 0
    told = capsys.readouterr()
    plan = {row["name"]: (row["state"], row["size_bytes"]) for row in json.loads(told.out)}
    assert plan == {path: ("fetch", len(content)) for path, content in FILES.items() if path.endswith(".pt")}
    assert "1 repository, 3 files: 0 here, 3 to fetch" in told.err
    assert list(home.iterdir()) == []
    assert run(["pull", f"hf:{REPO}", "--dry-run", "--json"]) == 0
    assert capsys.readouterr() == told


def test_a_repository_without_hf_in_front_gets_the_form_that_would_do(hub: Sites, capsys: Capture, home: Path) -> None:
    assert run(["sync", f"{REPO}:styles"]) == 4
    assert f"Hint: hnetkit sync hf:{REPO}:styles" in capsys.readouterr().err


def test_a_large_repository_is_agreed_to(hub: Sites, home: Path, capsys: Capture) -> None:
    assert run(["config", "unasked", "1kB"]) == 0
    assert run(["sync", f"hf:{REPO}"]) == 2
    assert "add -y to agree" in capsys.readouterr().err
    assert downloads(hub) == []
    assert run(["sync", f"hf:{REPO}", "-y"]) == 1
    assert run(["sync", f"hf:{REPO}"]) == 0, "there is nothing to agree to"


def test_updates_names_the_sync_that_asks_the_hub(hub: Sites, here: FetchSession) -> None:
    here.sync(f"hf:{REPO}")
    with pytest.warns(UserWarning, match=f"the hub is not asked; what is new there comes by: hnetkit sync hf:{REPO}"):
        here.updates()
    here.subscribe("anna", f"hf:{REPO}")
    with pytest.warns(UserWarning, match="hnetkit sync anna"):
        here.updates()

"""What the site is asked where one of two numbers may be gone, or where a reference chooses one of several files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response, json_response

from hnetkit.errors import Gone, UsageError
from hnetkit.sources.civitai import Filters
from hnetkit.sources.session import FetchSession

Model = dict[str, Any]


@pytest.fixture
def site() -> Iterator[Sites]:
    """Fifteen models: one version has two `.pt` files and a `.safetensors`, another one of each."""
    with Sites(World.make(15)) as sites:
        yield sites


def lose(site: Sites, *ends: str) -> None:
    """Lets the site know nothing of addresses that end so."""
    gone = json_response({"error": "not found"}, 404)
    site.alter = lambda request, response: gone if request.path.endswith(ends) else response


def of(site: Sites, quirk: str) -> tuple[Model, Model, list[Model]]:
    """Returns the first model with an oddity, its first version and that one's files."""
    model = site.world.model(site.world.find(quirk)[0])
    return model, model["modelVersions"][0], model["modelVersions"][0]["files"]


def fetched(session: FetchSession, text: str) -> set[str]:
    found = session.pull(text)
    assert {result.state for result in found} <= {"done", "had", "have"}
    return {str(result.file_id) for result in found}


PAGES = [
    "https://civitai.com/models/{m}?modelVersionId={v}",
    "civitai:{m}@{v}",
    "civarchive.com/models/{m}/x?modelVersionId={v}",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_version_is_found_where_its_model_is_gone(site: Sites, here: FetchSession, page: str) -> None:
    model, version, files = of(site, "plain")
    lose(site, f"/models/{model['id']}")
    assert fetched(here, page.format(m=model["id"], v=version["id"])) == {str(files[0]["id"])}
    (row,) = here.registry.catalogue.files()
    assert (row["model_id"], row["model"]) == (str(model["id"]), model["name"])


@pytest.mark.parametrize("page", ["version:{v}", "https://civitai.com/api/download/models/{v}"])
def test_a_version_alone_is_found_where_its_model_is_gone(site: Sites, here: FetchSession, page: str) -> None:
    model, version, files = of(site, "plain")
    lose(site, f"/models/{model['id']}")
    assert fetched(here, page.format(v=version["id"])) == {str(files[0]["id"])}


def test_a_version_that_its_model_does_not_list_is_found_by_itself(site: Sites, here: FetchSession) -> None:
    model, version, files = of(site, "out of order")

    def alter(request: Request, response: Response) -> Response:
        if not request.path.endswith(f"/models/{model['id']}"):
            return response
        return json_response({**model, "modelVersions": model["modelVersions"][1:]})

    site.alter = alter
    assert fetched(here, f"civitai:{model['id']}@{version['id']}") == {str(file["id"]) for file in files}


@pytest.mark.parametrize("page", PAGES)
def test_of_a_version_that_is_gone_the_others_of_its_model_are_named(
    site: Sites, here: FetchSession, page: str
) -> None:
    model, version, _ = of(site, "plain")
    text = page.format(m=model["id"], v=999_999)
    with pytest.raises(Gone, match=rf"{model['name']} has no version 999999; it has .* \({version['id']}\)") as caught:
        here.pull(text)
    assert caught.value.command_hint == f"hnetkit pull model:{model['id']}"


def test_where_both_are_gone_both_are_said(here: FetchSession) -> None:
    with pytest.raises(Gone, match="the site has neither version 999999 nor model 999998"):
        here.pull("civitai:999998@999999")


def test_a_download_link_with_the_number_of_a_model_fetches_that_and_says_so(site: Sites, here: FetchSession) -> None:
    model, _, files = of(site, "plain")
    with pytest.warns(UserWarning, match=f"no version has this number; fetches the model {model['name']}"):
        assert fetched(here, f"https://civitai.com/api/download/models/{model['id']}") == {str(files[0]["id"])}


def test_a_download_link_with_a_number_of_another_kind_of_model_fetches_nothing(
    open_session: Callable[..., FetchSession],
) -> None:
    with Sites(World.make(1, others=1)) as sites:
        other = next(model for model in sites.world.models if model["type"] != "Hypernetwork")
        with pytest.raises(Gone, match="the number may be a model's"):
            open_session(sites).pull(f"https://civitai.com/api/download/models/{other['id']}")
        assert not [request for request in sites.requests if "/download/" in request.path]


@pytest.mark.parametrize(
    "text",
    [
        "civitai:{m}@{v}+{f}",
        "urn:air:sd1:hypernet:civitai:{m}@{v}+{f}.safetensor",
        "civitai:{m}+{f}",
        "https://civitai.com/api/download/models/{v}?fileId={f}&format=SafeTensor",
        "https://civitai.com/models/{m}?modelVersionId={v}&fileId={f}",
    ],
)
def test_the_number_of_a_file_chooses_it_whatever_the_format_says(site: Sites, here: FetchSession, text: str) -> None:
    model, version, files = of(site, "three files")
    for file in files[:2]:
        assert fetched(here, text.format(m=model["id"], v=version["id"], f=file["id"])) == {str(file["id"])}
    with pytest.raises(Gone, match="has no file with the number 7 "):
        here.pull(text.format(m=model["id"], v=version["id"], f=7))


def test_the_number_of_a_file_is_looked_for_in_all_versions_of_a_model(site: Sites, here: FetchSession) -> None:
    model, _, _ = of(site, "out of order")
    for version in model["modelVersions"]:
        (file,) = version["files"]
        assert fetched(here, f"civitai:{model['id']}+{file['id']}") == {str(file["id"])}


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("civitai:{m}@{v}.pt", ".pt"),
        ("civitai:{m}@{v}.ckpt", ".pt"),
        ("urn:air:sd1:hypernet:civitai:{m}@{v}.safetensor", ".safetensors"),
        ("https://civitai.com/api/download/models/{v}?type=Model&format=SafeTensor", ".safetensors"),
        ("https://civitai.com/api/download/models/{v}?type=Model&format=PickleTensor&size=full&fp=fp16", ".pt"),
    ],
)
def test_a_format_chooses_among_several_files(site: Sites, here: FetchSession, text: str, suffix: str) -> None:
    for quirk in ("two formats", "three files"):
        model, version, files = of(site, quirk)
        wanted = {str(file["id"]) for file in files if file["name"].endswith(suffix)}
        assert 0 < len(wanted) < len(files)
        assert fetched(here, text.format(m=model["id"], v=version["id"])) == wanted


def test_a_format_and_a_number_choose_among_the_files_of_what_the_site_has_lost(
    site: Sites, here: FetchSession
) -> None:
    here.sync(Filters(nsfw=True), all_versions=True, metadata_only=True)
    model, version, files = of(site, "three files")
    lose(site, f"/models/{model['id']}", f"/model-versions/{version['id']}")
    texts = [f"civitai:{model['id']}@{version['id']}.safetensors", f"civitai:{model['id']}+{files[0]['id']}"]
    for text, file in zip(texts, (files[2], files[0]), strict=True):
        assert fetched(here, text) == {str(file["id"])}


def test_a_format_is_not_asked_of_a_single_file(site: Sites, here: FetchSession) -> None:
    model, version, files = of(site, "plain")
    assert files[0]["name"].endswith(".pt")
    assert fetched(here, f"civitai:{model['id']}@{version['id']}.safetensor") == {str(files[0]["id"])}


def test_a_format_that_none_of_several_files_has_is_said(site: Sites, here: FetchSession) -> None:
    model, version, files = of(site, "same name")
    with pytest.raises(Gone, match=f"has no safetensors file; it has {files[0]['name']}") as caught:
        here.pull(f"civitai:{model['id']}@{version['id']}.safetensors")
    assert caught.value.command_hint == f"hnetkit pull version:{version['id']} fetches all"


def test_a_version_of_another_model_is_refused_where_that_model_is_gone_too(site: Sites, here: FetchSession) -> None:
    model, version, _ = of(site, "plain")
    with pytest.raises(UsageError, match=f"belongs to model {model['id']}, not to 999998"):
        here.pull(f"civitai:999998@{version['id']}")

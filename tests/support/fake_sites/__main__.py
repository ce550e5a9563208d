"""Serves the fake sites until Ctrl-C: `python -m support.fake_sites`, from tests."""

from __future__ import annotations

import argparse
import contextlib
import threading

from support.fake_sites.site import Sites
from support.fake_sites.world import World


def main() -> None:
    parser = argparse.ArgumentParser(prog="fake_sites", description=__doc__)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--others", type=int, default=6, help="models of other types")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="add the real models of 2023, where they are at hand")
    parser.add_argument("--port", type=int, default=0, help="of the API; 0: any free one")
    parser.add_argument("--needs-token", action="store_true", help="downloads need the token")
    options = parser.parse_args()
    world = World.make(options.models, others=options.others, seed=options.seed, real=options.real)
    network = next((world.content(file["id"]) for _, _, file in world.files() if file["name"].endswith(".pt")), b"")
    repos = {"fake/hypernetworks": {"README.md": b"# Hypernetworks\n", "styles/ink.pt": network}}
    with Sites(world, repos=repos, needs_token=options.needs_token, port=options.port) as site:
        print(f"export HNETKIT_CIVITAI_URL={site.civitai_url}")
        print(f"export CIVITAI_TOKEN={site.token}")
        print(f"export HNETKIT_CIVARCHIVE_URL={site.civarchive_url}")
        print(f"export HF_ENDPOINT={site.hub_url}")
        print(f"export HF_TOKEN={site.hub_token}")
        print("export HF_HUB_DISABLE_XET=1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()

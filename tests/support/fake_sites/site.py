"""All the fake origins together, as tests use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from support.fake_sites import effects
from support.fake_sites.civarchive import CivArchive
from support.fake_sites.civitai import Civitai
from support.fake_sites.faults import Faults
from support.fake_sites.hub import Files, Hub
from support.fake_sites.messages import Ledger, Recorded, Request, Response
from support.fake_sites.server import Answer, Origin
from support.fake_sites.storage import Signer, Storage
from support.fake_sites.uploads import Account, Uploads
from support.fake_sites.world import World

TOKEN = "fake-civitai-token-0123456789abcdef"
HUB_TOKEN = "hf_fakefakefakefakefakefakefakefake"
STOLEN = b"you should not have come here"


class Sites:
    """Civitai's API ("api"), its storage ("storage"), a hub ("hub") and a third origin ("stranger") on 127.0.0.1.

    Also CivArchive ("civarchive"), and the mirrors that it knows ("mirrors").
    The stranger is where fault Q leads: a request recorded there went where it should not have gone.
    """

    def __init__(
        self,
        world: World | None = None,
        *,
        repos: Mapping[str, Files] | None = None,
        needs_token: bool = False,
        port: int = 0,
    ) -> None:
        """`port` is the API's; 0 lets the system choose, as for all others."""
        self.world = world or World.make(12)
        self.faults = Faults()
        self.alter: Callable[[Request, Response], Response] = lambda request, response: response  # a test's own
        self.token = TOKEN
        self.hub_token = HUB_TOKEN
        self._ledger = Ledger()
        self._signer = Signer(f"secret of {id(self)}")
        self._stage = effects.Stage(self.world, self._signer, self._ledger, self.token)
        self._civitai = Civitai(self.world, self._signer, self.token)
        self.needs_token = needs_token
        self.storage = Storage(self.world, self._signer)
        self.hub = Hub(self.storage, self._signer, self.hub_token)
        self.uploads = Uploads(self.hub, self.storage, self._signer, {self.hub_token: Account("me", ("studio",))})
        for name, files in (repos or {}).items():
            self.hub.add(name, files)
        self.civarchive = CivArchive(self.world)
        self._origins = {
            "api": Origin("api", self._faulty(self._civitai.answer), self._ledger, port),
            "storage": Origin("storage", self._faulty(self.uploads.before_storage(self.storage.answer)), self._ledger),
            "hub": Origin("hub", self._faulty(self.uploads.before(self.hub.answer)), self._ledger),
            "civarchive": Origin("civarchive", self._faulty(self.civarchive.answer), self._ledger),
            "mirrors": Origin("mirrors", self._faulty(self.civarchive.mirror_answer), self._ledger),
            "stranger": Origin("stranger", lambda _: Response(200, {}, STOLEN), self._ledger),
        }
        self.civitai_url = self._origins["api"].url + "/api/v1"
        self.storage_url = self._origins["storage"].url
        self.hub_url = self._origins["hub"].url
        self.civarchive_url = self._origins["civarchive"].url + "/api"
        self.civarchive.mirrors_url = self._origins["mirrors"].url
        self.stranger_url = self._origins["stranger"].url
        self._signer.base = self.storage_url
        self._stage.stranger_url = self.stranger_url
        self.world.bind(self._origins["api"].url + "/api", self.storage_url + "/images")

    @property
    def needs_token(self) -> bool:
        """Whether downloads need the good token."""
        return self._civitai.downloads.needs_token

    @needs_token.setter
    def needs_token(self, value: bool) -> None:
        self._civitai.downloads.needs_token = value

    def __enter__(self) -> Sites:
        for origin in self._origins.values():
            origin.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self._ledger.failures:
            raise AssertionError("the fake itself failed:\n" + "\n".join(self._ledger.failures))

    def close(self) -> None:
        """Stops all origins at once, also in the middle of a stall."""
        for origin in self._origins.values():
            origin.close()

    def download_url(self, version_id: int, file_id: int | None = None) -> str:
        """The download route's URL for a version, or for exactly one file of it."""
        base = f"{self._origins['api'].url}/api/download/models/{version_id}"
        return base if file_id is None else f"{base}?fileId={file_id}"

    @property
    def requests(self) -> list[Recorded]:
        """Every request to every origin so far, in the order of arrival, broken ones too."""
        return self._ledger.entries()

    def in_flight_peak(self, origin: str) -> int:
        """The most requests that an origin was answering at one time."""
        return self._ledger.in_flight_peak(origin)

    def connected(self, origin: str) -> int:
        """How many connections were made to an origin."""
        return self._origins[origin].connected

    def per_second_peak(self, origin: str) -> int:
        """The most requests that came to an origin within any one second."""
        return self._ledger.per_second_peak(origin)

    def clear(self) -> None:
        """Forgets requests and faults; the world stays as it is."""
        self._ledger.clear()
        self.faults.clear()

    def _faulty(self, answer: Answer) -> Answer:
        def faulty(request: Request) -> Response:
            fault = self.faults.take(request)
            if fault is None:
                return self.alter(request, answer(request))
            response = answer(effects.before(fault, request, self._stage))
            return self.alter(request, effects.after(fault, request, response, self._stage))

        return faulty

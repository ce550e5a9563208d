"""Fakes of Civitai and of the Hugging Face hub on 127.0.0.1, as unhelpful as the real ones, for tests and by hand.

    with Sites(World.make(30), needs_token=True) as site:
        site.faults.add(Fault("E", after=1000))
        ...
        assert [entry.status for entry in site.requests] == [200, 307, 200]

`Sites` starts them, `World` is the made-up catalogue that they serve, `Fault` is a switch that makes the next request
of a kind go wrong, and `random_fault` draws one. Every origin records its requests in `site.requests`. What is imitated
stands beside it: the oddities of the catalogue in `quirks`, of lists in `listing`, of downloads in `downloads` and
`storage`, of all that fails in `faults`.
"""

from support.fake_sites.faults import Fault, random_fault
from support.fake_sites.messages import Recorded
from support.fake_sites.site import Sites
from support.fake_sites.world import World

__all__ = ["Fault", "Recorded", "Sites", "World", "random_fault"]

"""A way to launch, as times are kept for it: a route, and the size of its clusters."""

from __future__ import annotations

from dataclasses import dataclass

from drvtopk.checks import as_int, one_of, shown, store
from drvtopk.errors import InvalidArgument
from drvtopk.spec import ROUTES, cluster_sizes


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """A route, and the blocks of a cluster: 2, 4, 8 or 16 for `clustered`, 1 for the others.

    Choices sort by the route's name, then by the cluster. `str` spells one as files and command lines do:
    "clustered:8", "filtered". Raises InvalidArgument for a route or a cluster that does not exist.
    """

    route: str
    cluster: int = 1

    def __post_init__(self) -> None:
        route = one_of("route", self.route, ROUTES)
        cluster, sizes = as_int(self.cluster), cluster_sizes(route)
        if cluster not in sizes:
            allowed = f"{' or '.join(map(str, sizes))} for the route {route!r}"
            raise InvalidArgument("cluster", shown(self.cluster), allowed)
        store(self, route=route, cluster=cluster)

    @classmethod
    def parse(cls, text: str) -> Choice:
        """The choice that `str` spells so, exactly. Raises InvalidArgument."""
        return _SPELLED[one_of("route", text, _SPELLED)]

    def __str__(self) -> str:
        return f"{self.route}:{self.cluster}" if self.cluster > 1 else self.route


CHOICES = tuple(Choice(route, cluster) for route in ROUTES for cluster in cluster_sizes(route))
_SPELLED = {str(choice): choice for choice in CHOICES}

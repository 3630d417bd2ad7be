"""Metrics of each node's reports, read at each scrape: the series of a deleted node end with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class NodeCollector(Collector):
    """Reports every node with a NodePower at each scrape."""

    def __init__(self, refused: Callable[[], Mapping[str, int]]) -> None:
        self._refused = refused

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The family without its values: no node is read before the first scrape."""
        return (self._family(),)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample a node."""
        family = self._family()
        for node, count in self._refused().items():
            family.add_metric([node], count)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "greentrain_node_report_refused",
            "Entries and fields of a node's last report that are not believed and do not count; the log names them.",
            labels=["node"],
        )

"""What Prometheus reads at `/metrics`."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("aurora_requests_total", "Requests by route and status.",
                                 ("method", "route", "status"), registry=self._registry)
        self._seconds = Histogram("aurora_request_seconds", "Seconds of a request, its answer included.",
                                  ("route",), registry=self._registry, buckets=SECONDS)
        self.first_token = Histogram("aurora_first_token_seconds", "Seconds from a question to its first text.",
                                     registry=self._registry, buckets=SECONDS)
        self.films_watched = Counter("aurora_films_watched_total", "Films read to their end.", registry=self._registry)
        self.film_hits = Counter("aurora_film_hits_total", "Requests whose film had been watched before.",
                                 registry=self._registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request that has ended; 499 is one whose client left."""
        self._requests.labels(method if method in ("GET", "POST", "DELETE") else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Gauges by name, with what they tell and how it is read."""
        for name, (about, read) in gauges.items():
            Gauge(f"aurora_{name}", about, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

"""Prometheus metrics of the gateway."""


class GatewayWatch:
    """Measures nothing: for gateways outside of Ray."""

    def refused(self, model: str, kind: str) -> None:
        """A request got no answer from the gateway; without a `model` where none is known."""


class RayGatewayWatch(GatewayWatch):
    """What no replica sees: requests without key, name, time, room or body."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._refused = Counter(
            "trainyard_gateway_refused_total",
            description="Requests that the gateway answered with an error of its own, by kind.",
            tag_keys=("model", "kind"),
        )

    def refused(self, model: str, kind: str) -> None:
        """A request got no answer from the gateway; without a `model` where none is known."""
        self._refused.inc(tags={"model": model, "kind": kind})

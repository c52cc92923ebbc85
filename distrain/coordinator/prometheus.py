"""Numbers of a run for Prometheus, as text over HTTP on this machine's loopback."""

from typing import Any

from distrain.coordinator.observers import Ending, EpochRecord
from distrain.errors import ConfigError
from distrain.parallel.split import BatchPlan
from distrain.step import StepResult

ADDRESS = "127.0.0.1"

_GAUGES = {
    "epochs": "Epochs that are planned.",
    "step": "Steps done.",
    "epoch": "Epochs done.",
    "loss": "Mean loss of the last step.",
    "grad_norm": "Global norm of the last step's gradient, before clipping.",
    "learning_rate": "Of the first parameter group.",
    "samples_per_second": "Training samples a second, over the last epoch.",
}
_COUNTERS = {
    "steps": "Steps done by this start.",
    "samples": "Samples seen by this start.",
}


class PrometheusEndpoint:
    """Serves `distrain_...` at `http://127.0.0.1:PORT/metrics` while the run goes on.

    Attributes:
        port: The port, also where any free one was asked for.
    """

    def __init__(self, port: int) -> None:
        """Starts to serve; 0 takes a free port.

        Raises:
            ConfigError: the port is taken, or not ours to take.
        """
        # Imported here: few runs ask for it.
        import prometheus_client as prometheus  # noqa: PLC0415

        registry = prometheus.CollectorRegistry()
        self._gauges = {
            name: prometheus.Gauge(f"distrain_{name}", text, registry=registry)
            for name, text in _GAUGES.items()
        }
        self._counters = {
            name: prometheus.Counter(f"distrain_{name}", text, registry=registry)
            for name, text in _COUNTERS.items()
        }
        self._scores = prometheus.Gauge(
            "distrain_score", "Score of the last epoch.", ["name"], registry=registry
        )
        self._events = prometheus.Counter(
            "distrain_events", "Things that happened beside steps.", ["event"], registry=registry
        )
        try:
            self._server, self._thread = prometheus.start_http_server(
                port, addr=ADDRESS, registry=registry
            )
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"run.prometheus_port is {port}, and nothing can be served there ({error}): give "
                "another one, or 0 for any that is free"
            ) from error
        self.port = self._server.server_port

    @property
    def url(self) -> str:
        """Where it is read."""
        return f"http://{ADDRESS}:{self.port}/metrics"

    def begin(self, plan: BatchPlan, epochs: int) -> None:  # noqa: ARG002 - an observer's
        """How long the run is."""
        self._gauges["epochs"].set(epochs)

    def step(self, result: StepResult) -> None:
        """The step's numbers."""
        self._gauges["step"].set(result.batch.step + 1)
        self._gauges["loss"].set(result.totals.loss)
        self._gauges["grad_norm"].set(result.grad_norm)
        self._gauges["learning_rate"].set(result.lr)
        self._counters["steps"].inc()
        self._counters["samples"].inc(result.totals.num_samples)

    def epoch(self, record: EpochRecord) -> None:
        """The epoch's scores."""
        self._gauges["epoch"].set(record.epoch)
        self._gauges["samples_per_second"].set(record.samples_per_s)
        for name, score in record.scores.items():
            self._scores.labels(name).set(score)

    def note(self, event: str, text: str, **fields: Any) -> None:  # noqa: ARG002 - an observer's
        """Counts it, by its kind."""
        self._events.labels(event).inc()

    def end(self, ending: Ending) -> None:  # noqa: ARG002 - an observer is told how it ended
        """Serves no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

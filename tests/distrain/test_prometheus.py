"""The Prometheus endpoint, read with Prometheus' own parser."""

import re
import socket
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from torch.nn import CrossEntropyLoss, Linear, Module
from torch.optim import SGD

import distrain
from data_pipeline import Dataset
from distrain.config import RunConfig
from distrain.coordinator.observers import Ending
from distrain.coordinator.prometheus import ADDRESS, PrometheusEndpoint
from distrain.errors import ConfigError
from distrain.micro_batch import Columns, MicroBatchResult
from tests.distrain.test_observers import PLAN, epoch_record, step_result


def served(endpoint: PrometheusEndpoint) -> dict[tuple[str, str], float]:
    return read(endpoint.url)


def read(url: str) -> dict[tuple[str, str], float]:
    with urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_it_serves_the_last_step_the_last_scores_and_counts() -> None:
    endpoint = PrometheusEndpoint(0)
    endpoint.begin(PLAN, 3)
    for number in range(PLAN.steps_per_epoch):
        endpoint.step(step_result(number, loss=2.0 - 0.25 * number))
    endpoint.epoch(epoch_record(1, loss=1.5, val_accuracy=0.75))
    endpoint.note("checkpoint", "wrote it", step=4)
    endpoint.note("checkpoint", "wrote it", step=5)
    found = served(endpoint)
    endpoint.end(Ending("finished", 0))
    wanted = {
        ("distrain_epochs", ""): 3,
        ("distrain_step", ""): 4,
        ("distrain_epoch", ""): 1,
        ("distrain_loss", ""): 1.25,
        ("distrain_grad_norm", ""): 1.5,
        ("distrain_learning_rate", ""): 0.5,
        ("distrain_samples_total", ""): 100,
        ("distrain_steps_total", ""): 4,
        ("distrain_score", "val_accuracy"): 0.75,
        ("distrain_events_total", "checkpoint"): 2,
    }
    assert {name: found[name] for name in wanted} == wanted


def test_it_serves_no_more_once_the_run_has_ended() -> None:
    endpoint = PrometheusEndpoint(0)
    served(endpoint)
    endpoint.end(Ending("finished", 0))
    with pytest.raises(URLError, match="refused"):
        served(endpoint)


def test_it_listens_on_loopback_alone() -> None:
    endpoint = PrometheusEndpoint(0)
    assert endpoint._server.server_address[0] == "127.0.0.1"
    endpoint.end(Ending("finished", 0))


def test_a_port_that_is_taken_or_none_is_refused_by_name() -> None:
    with socket.create_server((ADDRESS, 0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"run\.prometheus_port is {port}.*Address already"):
            PrometheusEndpoint(port)
    with pytest.raises(ConfigError, match=r"run\.prometheus_port is 70000"):
        PrometheusEndpoint(70_000)


def test_a_run_that_is_asked_to_serves_while_it_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    loss = CrossEntropyLoss()
    seen = list[dict[tuple[str, str], float]]()

    def run(model: Module, columns: Columns) -> MicroBatchResult:
        url = re.search(r"http://\S+/metrics", capsys.readouterr().out)
        if url is not None:
            seen.append(read(url[0]))
        outputs = model(columns["x"])
        return loss(outputs, columns["y"]) * len(outputs), float(len(outputs)), outputs

    data = Dataset.from_arrays({"x": np.eye(4, dtype=np.float32), "y": np.arange(4) % 2})
    distrain.Trainer(
        model=lambda: Linear(4, 2),
        loss=loss,
        optimizer=lambda parameters: SGD(parameters, lr=0.1),
        inputs="x",
        target="y",
        micro_batch_step=run,
        prometheus_port=0,
    ).fit(data, epochs=1, global_batch=2)
    assert [one["distrain_epochs", ""] for one in seen] == [1.0]


def test_a_port_that_is_none_is_a_bad_config() -> None:
    with pytest.raises(ConfigError, match=r"run\.prometheus_port is -1; give 0 to 65535"):
        RunConfig(prometheus_port=-1)

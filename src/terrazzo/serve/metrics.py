"""Counters and histograms in Prometheus' text format, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from terrazzo.serve.models import Models, Usage

if TYPE_CHECKING:
    from terrazzo.serve.engine import BatchStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DOCUMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)


class Metrics:
    """What a server has done. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self._requests = Counter("terrazzo_requests", "Requests answered.", ("route", "status"), registry=own)
        self._request_seconds = Histogram(
            "terrazzo_request_seconds",
            "Seconds from the headers of a request to the end of its reply.",
            ("route",),
            buckets=_SECONDS,
            registry=own,
        )
        self._tokens = Counter("terrazzo_tokens", "Tokens read.", ("model",), registry=own)
        self._inputs = Counter("terrazzo_inputs", "Texts, pairs and documents read.", ("model",), registry=own)
        self._cut_inputs = Counter("terrazzo_truncated_inputs", "Inputs that were cut.", ("model",), registry=own)
        self._cut_tokens = Counter("terrazzo_truncated_tokens", "Tokens that were not read.", ("model",), registry=own)
        self._waits = self._histogram("queue_seconds", "Seconds that a request waited for a batch.", _SECONDS)
        self._runs = self._histogram("run_seconds", "Seconds that a batch ran.", _SECONDS)
        self._documents = self._histogram("batch_documents", "Documents of a batch.", _DOCUMENTS)
        self._batch_tokens = self._histogram("batch_tokens", "Tokens of a batch.", _TOKENS)
        self._padding = Counter("terrazzo_padding_tokens", "Padding of batches.", ("encoder",), registry=own)
        self._failed = Counter(
            "terrazzo_failed_documents", "Documents that could not be answered.", ("encoder",), registry=own
        )
        self._request_child = cache(self._requests.labels)
        self._seconds_child = cache(self._request_seconds.labels)
        self._model_children = cache(self._children_of)

    def watch(self, models: Models) -> None:
        """Count the models' batches from now on, and tell how much waits whenever the metrics are read."""
        models.hooks.append(self.batch)
        self.registry.register(_QueueCollector(models))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is the pattern of its path, so that there are never many."""
        self._request_child(route, status).inc()
        self._seconds_child(route).observe(seconds)

    def usage(self, model: str, usage: Usage) -> None:
        """Count what a model has read."""
        tokens, inputs, cut_inputs, cut_tokens = self._model_children(model)
        tokens.inc(sum(usage.tokens))
        inputs.inc(len(usage.tokens))
        if any(usage.truncated):
            cut_inputs.inc(sum(map(bool, usage.truncated)))
            cut_tokens.inc(sum(usage.truncated))

    def batch(self, encoder: str, stats: BatchStats) -> None:
        """Count a batch of the encoder of that name."""
        waits = self._waits.labels(encoder)
        for seconds in stats.waits:
            waits.observe(seconds)
        self._runs.labels(encoder).observe(stats.seconds)
        self._documents.labels(encoder).observe(stats.documents)
        self._batch_tokens.labels(encoder).observe(stats.tokens)
        self._padding.labels(encoder).inc(stats.padded - stats.tokens)
        self._failed.labels(encoder).inc(stats.failed)

    def render(self) -> bytes:
        """All of it as text."""
        return generate_latest(_WithoutBirthdays(self.registry))

    def _histogram(self, name: str, about: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"terrazzo_{name}", about, ("encoder",), buckets=buckets, registry=self.registry)

    def _children_of(self, model: str) -> tuple[Counter, Counter, Counter, Counter]:
        tokens, inputs = self._tokens.labels(model), self._inputs.labels(model)
        return tokens, inputs, self._cut_inputs.labels(model), self._cut_tokens.labels(model)


class _WithoutBirthdays(Collector):
    """A registry without the gauges that tell when each counter was made, which nobody asks for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _QueueCollector(Collector):
    """The queues as they are when somebody looks."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        documents = GaugeMetricFamily("terrazzo_queue_documents", "Documents that wait.", labels=("encoder",))
        tokens = GaugeMetricFamily("terrazzo_queue_tokens", "Tokens that wait.", labels=("encoder",))
        for encoder in {id(model.engine): model.loaded.encoder for model in self._models}.values():
            documents.add_metric([encoder.name], encoder.engine.queued_documents)
            tokens.add_metric([encoder.name], encoder.engine.queued_tokens)
        return documents, tokens

    def describe(self) -> Iterable[Metric]:
        return ()

"""Held-out trails sent through a running server have the feature vectors of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from intake.master import read_sites
from serving.history import Recall
from serving.routes import Service
from serving.scorer import Judged
from serving.settings import Settings
from tests.behaviour.champions import FULL, Champion
from tests.serving.held_out import SCANS, as_json, held_out_scans, pipelines_features
from tests.serving.served import served
from tests.serving.stores import lmdb_url, url_of, valkey
from trail.scan import Scans
from trail.sites import Sites

STORES = ("lmdb", "server")
SHARE = 0.02
"""Of the scans, sent twice, and of the scans, held back."""


@pytest.fixture(scope="module")
def held_out(champion: Champion) -> Scans:
    return held_out_scans(champion, 40_000 if FULL else SCANS)


@pytest.fixture(scope="module")
def sites(bundle_folder: Path) -> Sites:
    return read_sites(bundle_folder / "sites.csv")


@pytest.fixture(params=STORES)
def running(
    request: pytest.FixtureRequest, tmp_path: Path, bundle_folder: Path
) -> Iterator[tuple[httpx.Client, Service]]:
    with history_url(request.param, tmp_path) as url:
        settings = Settings(home=tmp_path, bundle=str(bundle_folder), history=url)
        with served(settings) as (client, app):
            yield client, app.state.service


@contextmanager
def history_url(kind: str, folder: Path) -> Iterator[str]:
    if kind == "lmdb":
        yield lmdb_url(folder)
        return
    with valkey() as server:
        yield url_of(server)


class Seen:
    """The vectors that the service judged by, of each scan the last ones, by event id."""

    def __init__(self, service: Service) -> None:
        self.vectors: dict[int, np.ndarray] = {}
        self._judged: Callable[..., Judged] = service.scorer.judged
        service.scorer.judged = self._noted  # type: ignore[method-assign]

    def _noted(self, recall: Recall, *more: object) -> Judged:
        found = self._judged(recall, *more)
        for event_id, place in zip(recall.event_id.tolist(), found.place.tolist(), strict=True):
            self.vectors[event_id] = found.features[place]
        return found

    def of(self, scans: Scans, at: np.ndarray) -> np.ndarray:
        return np.stack([self.vectors[row + 1] for row in scans.row[at].tolist()])


def send(client: httpx.Client, rows: list[dict[str, object]]) -> None:
    answer = client.post("/score", json={"data": rows})
    assert answer.status_code == 200, answer.text
    assert "X-Degraded" not in answer.headers


def model_of(service: Service):
    model = service.judge.panel().champion
    assert model is not None
    return model


def now(service: Service, code: str) -> dict[int, np.ndarray]:
    """The vectors of a trail as it is remembered, by event id."""
    found = service.thread.submit(service.scorer.now, code).result()
    assert found is not None
    recall, judged = found
    places = judged.place.tolist()
    return {
        event_id: judged.features[place]
        for event_id, place in zip(recall.event_id.tolist(), places, strict=True)
    }


def assert_same_in_the_end(service: Service, scans: Scans, offline: np.ndarray) -> None:
    """Every trail, asked for anew, has the pipeline's vectors."""
    text = scans.codes.text
    for epc in np.unique(scans.epc):
        at = np.flatnonzero(scans.epc == epc)
        vectors = now(service, text[int(epc)].as_py())
        assert vectors.keys() == {row + 1 for row in scans.row[at].tolist()}
        for i in at.tolist():
            np.testing.assert_array_equal(vectors[int(scans.row[i]) + 1], offline[i])


def whole_timestamps(scans: Scans, size: int) -> list[np.ndarray]:
    """Requests of about `size` scans by time, of which none divides a timestamp."""
    asked = np.argsort(scans.time_us, kind="stable")
    time_us = scans.time_us[asked]
    heads = np.flatnonzero(np.append(True, time_us[1:] != time_us[:-1]))
    cuts = [0]
    for head in heads.tolist():
        if head - cuts[-1] >= size:
            cuts.append(head)
    return [asked[a:b] for a, b in zip(cuts, [*cuts[1:], len(asked)], strict=True)]


def test_in_order_every_scan_is_judged_by_the_pipelines_vector(
    running: tuple[httpx.Client, Service], held_out: Scans, sites: Sites
) -> None:
    client, service = running
    offline = pipelines_features(model_of(service), held_out, sites)
    seen = Seen(service)
    for at in whole_timestamps(held_out, 50):
        send(client, as_json(held_out, at, sites))
        np.testing.assert_array_equal(seen.of(held_out, at), offline[at])
    assert len(seen.vectors) == len(held_out)
    assert service.log.figures()["scans"] == len(held_out)


def test_with_repeats_delays_and_shuffled_requests_it_ends_with_the_pipelines_vectors(
    running: tuple[httpx.Client, Service], held_out: Scans, sites: Sites
) -> None:
    client, service = running
    rng = np.random.default_rng(11)
    for at in disorder(rng, held_out):
        send(client, as_json(held_out, at, sites))
    offline = pipelines_features(model_of(service), held_out, sites)
    assert_same_in_the_end(service, held_out, offline)
    assert service.log.figures()["scans"] == len(held_out)


def disorder(rng: np.random.Generator, scans: Scans) -> list[np.ndarray]:
    """Requests with scans sent twice, in one request and later, and others held back, shuffled."""
    n = len(scans)
    some = round(SHARE * n)
    requests = whole_timestamps(scans, 50)
    late = np.zeros(n, bool)
    late[rng.permutation(n)[:some]] = True
    prompt = [at[~late[at]] for at in requests]
    held_back = np.array_split(rng.permutation(np.flatnonzero(late)), max(some // 10, 1))
    twice = np.array_split(rng.permutation(n)[:some], max(some // 10, 1))
    prompt[0] = np.concatenate([prompt[0], prompt[0][:5]])
    every = [at for at in (*prompt, *held_back, *twice) if len(at)]
    return [rng.permutation(every[i]) for i in rng.permutation(len(every)).tolist()]


def test_verdicts_logged_in_order_are_those_of_the_file(
    tmp_path: Path, bundle_folder: Path, held_out: Scans, sites: Sites
) -> None:
    from models.scoring import score

    settings = Settings(home=tmp_path, bundle=str(bundle_folder), history="memory:")
    with served(settings) as (client, app):
        service = app.state.service
        for at in whole_timestamps(held_out, 200):
            send(client, as_json(held_out, at, sites))
        model = model_of(service)
        logged = {r.scan.event_id: r.given for r in service.log.since(0, len(held_out) + 1)}
    filed = score(model.bundle, held_out, sites, model.registry)
    told = [logged[row + 1] for row in held_out.row.tolist()]
    # The same vectors in batches of another size: matrix products may round otherwise.
    np.testing.assert_allclose(np.array([v.score for v in told]), filed.score, atol=1e-3)
    flagged = np.flatnonzero(filed.flag.any(axis=1))
    assert len(flagged)
    assert [told[i].evidence for i in flagged] == [filed.evidence[i] for i in flagged]

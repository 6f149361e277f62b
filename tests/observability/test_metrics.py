"""Metrics: names are a golden list, labels are bounded, values arrive where Prometheus reads
them.
"""

import asyncio
import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.observability.metrics import Metrics, serve
from peer.errors import ConfigurationError, TemporaryFailure

GOLDEN = """
peerpoise_build_info version torch python
peerpoise_checkpoint_age_seconds
peerpoise_connections used
peerpoise_consensus_distance
peerpoise_event_loop_lag_seconds
peerpoise_insecure what
peerpoise_lost_edges peer
peerpoise_outliers peer
peerpoise_partial_mixes
peerpoise_diagnostic name peer
peerpoise_mixing_weight_ratio peer
peerpoise_peer_rtt_seconds peer
peerpoise_peer_up peer
peerpoise_phase_seconds kind
peerpoise_privacy_delta
peerpoise_privacy_epsilon_limit
peerpoise_privacy_epsilon_spent scope mode adjacency accountant
peerpoise_privacy_ledger_errors
peerpoise_privacy_lifetime_delta
peerpoise_contradictions peer
peerpoise_refused peer code
peerpoise_rejected peer
peerpoise_releases recipient
peerpoise_releases_withheld
peerpoise_round
peerpoise_rounds
peerpoise_run_rounds
peerpoise_task_metric metric
peerpoise_tls_enabled
peerpoise_wait_seconds peer
peerpoise_wire_bytes peer direction kind
peerpoise_wire_errors peer code
process_cpu_seconds
process_max_fds
process_open_fds
process_resident_memory_bytes
process_start_time_seconds
process_virtual_memory_bytes
"""


@pytest.fixture
def metrics():
    made = Metrics(version="0.1.0", torch="2.13", python="3.11")
    made.neighbors(["n1", "n2"], me="n0")
    return made


@pytest.fixture
def ready():
    return threading.Event()


@pytest.fixture
def endpoint(metrics, ready):
    made = serve(metrics, "127.0.0.1:0", ready.is_set)
    yield made
    made.close()


def get(endpoint, path: str = "/metrics") -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{endpoint.address}{path}", timeout=5) as answer:
        return answer.read().decode()


def use(metrics: Metrics) -> None:
    """Every instrument once."""
    metrics.round.set(7)
    metrics.rounds.inc()
    metrics.run_rounds.set(100)
    metrics.phase("model", 0.3)
    metrics.waited("n1", 0.2)
    metrics.up("n1", True)
    metrics.rejected("n1")
    metrics.contradicted("n1")
    metrics.refused("stranger", "CODE_NOT_A_MEMBER")
    metrics.connections(begun=3, used=2)
    metrics.rtt("n1", 0.001)
    metrics.mixing_weight("n1", 1 / 3)
    metrics.diagnostic("cosine", -0.01, "n1")
    metrics.diagnostic("step", 3)
    metrics.consensus_distance.set(0.25)
    metrics.task_metric("accuracy", 0.9)
    metrics.lag.observe(0.002)
    metrics.checkpointed()
    metrics.wire("n1", "sent", "model", 2600)
    metrics.error("n1", "STALE")
    metrics.lost("n2")
    metrics.outlier("n2")
    metrics.partial_mixes.inc()
    metrics.insecure("transport", False)
    metrics.insecure("seed", True)
    metrics.tls.set(1)
    for scope in ("total", "link", "lifetime"):
        metrics.epsilon(scope, 1.5, mode="strict", adjacency="add/remove", accountant="RDP")
    metrics.epsilon_limit.set(8)
    metrics.delta.set(1e-5)
    metrics.release("n1")
    metrics.release("n0")
    metrics.withheld.inc()
    metrics.ledger_errors.inc()


def test_golden_list_of_names_and_labels(metrics):
    """A new metric is a decision about privacy: change this list only after asking what it tells
    about private data.
    """
    use(metrics)
    found = {}
    for family in metrics.registry.collect():
        name = family.name + ("_info" if family.type == "info" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = labels
    golden = {line.split()[0]: set(line.split()[1:]) for line in GOLDEN.split("\n")[1:-1]}
    assert found == golden


def test_what_prometheus_reads(metrics, endpoint):
    use(metrics)
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(get(endpoint))
        for sample in family.samples
    }
    assert samples["peerpoise_build_info", "0.1.0", "2.13", "3.11"] == 1
    assert samples["peerpoise_rounds_total",] == 1
    assert samples["peerpoise_round",] == 7
    assert samples["peerpoise_phase_seconds_sum", "model"] == 0.3
    assert samples["peerpoise_phase_seconds_bucket", "0.5", "model"] == 1
    assert samples["peerpoise_wait_seconds_sum", "n1"] == 0.2
    assert (samples["peerpoise_peer_up", "n1"], samples["peerpoise_peer_up", "n2"]) == (1, 0)
    assert samples["peerpoise_wire_bytes_total", "model", "n1", "sent"] == 2600
    assert samples["peerpoise_privacy_epsilon_spent", "RDP", "add/remove", "strict", "total"] == 1.5
    assert samples["peerpoise_releases_total", "n0"] == 1
    assert (samples["peerpoise_insecure", "seed"], samples["peerpoise_insecure", "transport"]) == (
        1,
        0,
    )
    assert samples["process_resident_memory_bytes",] > 1e6
    assert not [name for name, *_ in samples if name.endswith("_created")]


def test_strangers_never_become_labels(metrics):
    use(metrics)
    before = sum(len(family.samples) for family in metrics.registry.collect())
    for k in range(1000):
        stranger = f"attacker-{k}"
        metrics.error(stranger, "STALE")
        metrics.up(stranger, True)
        metrics.wire(stranger, "received", "model", 1)
        metrics.release(stranger)
    families = metrics.registry.collect()
    assert sum(len(family.samples) for family in families) <= before + 4


def test_age_of_the_checkpoint():
    now = [100.0]
    metrics = Metrics(version="0", torch="0", python="0", clock=lambda: now[0])
    assert str(metrics.registry.get_sample_value("peerpoise_checkpoint_age_seconds")) == "nan"
    metrics.checkpointed()
    now[0] = 130.5
    assert metrics.registry.get_sample_value("peerpoise_checkpoint_age_seconds") == 30.5


def test_what_is_not_known_yet_is_nan_and_not_zero(metrics):
    unknown = [
        "consensus_distance",
        "privacy_epsilon_limit",
        "privacy_delta",
        "privacy_lifetime_delta",
    ]
    for name in (*unknown, "run_rounds"):
        assert str(metrics.registry.get_sample_value(f"peerpoise_{name}")) == "nan"


def test_two_nodes_in_one_process_do_not_mix():
    one, two = (Metrics(version="0", torch="0", python="0") for _ in range(2))
    one.rounds.inc(5)
    assert two.registry.get_sample_value("peerpoise_rounds_total") == 0


def test_healthy_and_ready(endpoint, ready):
    assert get(endpoint, "/-/healthy") == "200 OK\n"
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        get(endpoint, "/-/ready")
    caught.value.close()
    ready.set()
    assert get(endpoint, "/-/ready") == "200 OK\n"
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        get(endpoint, "/")
    caught.value.close()


async def test_who_reads_at_intervals_sees_the_last_figures(metrics, endpoint):
    for _ in range(2):
        await asyncio.to_thread(get, endpoint)
    endpoint._reads[0] -= 10  # it comes every ten seconds
    task = asyncio.create_task(endpoint.read_again())
    await asyncio.sleep(0.3)
    assert not task.done()
    await asyncio.to_thread(get, endpoint)
    await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("interval", [None, 3600])
def test_where_nobody_reads_at_intervals_nobody_is_waited_for(endpoint, interval):
    get(endpoint)
    if interval:
        get(endpoint)
        endpoint._reads[0] -= interval
    with pytest.raises(StopIteration):
        endpoint.read_again().send(None)


def test_a_scraper_that_hangs_blocks_nobody(metrics):
    endpoint = serve(metrics, "127.0.0.1:0")
    host, port = endpoint.address.split(":")
    with socket.create_connection((host, int(port))):
        assert "peerpoise_round" in get(endpoint)
        endpoint.close()


def test_addresses_that_do_not_work_are_one_sentence(metrics, endpoint):
    with pytest.raises(TemporaryFailure, match="choose another port"):
        serve(metrics, endpoint.address)
    for wrong in ("9464", "localhost:", ":9464", "localhost:web"):
        with pytest.raises(ConfigurationError, match=r"metrics\.listen"):
            serve(metrics, wrong)


def test_ipv6():
    metrics = Metrics(version="0", torch="0", python="0")
    try:
        endpoint = serve(metrics, "[::1]:0")
    except TemporaryFailure:
        pytest.skip("this machine has no IPv6 loopback")
    assert endpoint.address.startswith("[::1]:")
    assert "peerpoise_round" in get(endpoint)
    endpoint.close()

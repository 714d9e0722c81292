from weavenet.lab.bench_report import report, table
from weavenet.lab.bench_results import CniResult, Memory, PathResult, Results
from weavenet.lab.traffic import PacketRate, RoundTrips, Throughput


def path(name: str, mbit_s: float, p50_us: float) -> PathResult:
    moved = [Throughput(mbit_s * factor, 3, 0.25) for factor in (1, 2, 3)]
    small = [PacketRate(200_000, mbit_s * factor) for factor in (1, 2, 3)]
    return PathResult(name, f"the {name} path", moved, [RoundTrips(1000, p50_us, p50_us * 2)] * 3, small)


def results() -> Results:
    return Results(
        date="2026-01-02",
        machine="2 processors",
        rounds=3,
        transfer_s=3,
        paths=[path("bare", 10_000, 50), path("vxlan-bridge", 5_000, 60), path("vxlan-routed", 4_000, 75)],
        cni=[CniResult("bridge", [8.0, 9.0, 30.0], [1.0, 2.0, 3.0], [3.0, 3.0, 3.0])],
    )


def test_a_table_is_markdown() -> None:
    assert table(["path", "ms"], [["a", "1"]]) == "| path | ms |\n| --- | ---: |\n| a | 1 |\n"


def test_every_path_is_compared_with_every_base() -> None:
    page = report(results())
    assert "| the vxlan-bridge path | 10,000 | 0.50 | 1.00 | 1.25 | 0.250 | 3 |" in page
    assert "| the vxlan-routed path | 75.0 | 150.0 | 1.50 | 1.25 | 1.00 |" in page


def test_small_packets_are_told_by_what_was_sent_and_what_came() -> None:
    assert "| the bare path | 200,000 | 20,000 |" in report(results())


def test_sleeve_is_compared_with_real_weave_net_within_each_round() -> None:
    found = results()
    assert "Weave Net's sleeve, measured elsewhere" in report(found)
    rates = {"weave": 130.0, "sleeve": 1300.0, "sleeve-weave": 260.0, "mixed-to": 195.0, "mixed-from": 143.0}
    sealed = {"weave-sealed": 100.0, "sleeve-sealed": 500.0, "mixed-sealed-to": 110.0, "mixed-sealed-from": 120.0}
    found.paths += [path(name, rate, 600) for name, rate in {**rates, **sealed}.items()]
    page = report(found)
    assert "| the sleeve path | 10.00 | 1.00 | 10.00 |" in page
    assert "| the mixed-sealed-to path | 1.10 | 1.00 | 1.10 |" in page
    assert "measured elsewhere, not in this run" not in page


def test_cni_is_told_by_its_median_and_its_worst() -> None:
    assert "| bridge | 9.0 | 30.0 | 2.0 | 3.0 | 3.0 |" in report(results())


def test_agents_are_left_out_of_a_run_without_them() -> None:
    assert "Memory" not in report(results())


def test_agents_are_told_by_time_and_memory() -> None:
    with_agents = results()
    with_agents.connected_s = [0.4, 0.6, 0.5]
    with_agents.memory = [Memory(40.0, 60.0), Memory(41.0, 61.0), Memory(42.0, 62.0)]
    page = report(with_agents)
    assert "| weavenet | 0.50 | 0.40 | 0.60 |" in page
    assert "| weavenet | 41.0 | 61.0 |" in page


def test_no_line_of_the_page_ends_in_a_blank() -> None:
    assert not [line for line in report(results()).splitlines() if line != line.rstrip()]

"""The section of docs/benchmarks.md about scale."""

from msgspec.structs import replace

from weavenet.sim.scale_report import MARK, Measured, line, replace_section, section, section_of

REST = Measured(
    50, compact=True, phase="rest", duration_s=30.0, messages=24, sent_bytes=600.0, cpu_s=0.003, known_s=None
)
JOIN = replace(REST, phase="one joins", known_s=0.4, agreed_s=1.2)


def test_sizes_stand_side_by_side_and_ways_below_each_other() -> None:
    page = section([REST, replace(REST, hosts=1000), replace(REST, compact=False, sent_bytes=60_000.0), JOIN])
    assert "| bytes per node and second | 50 | 1,000 |\n| --- | ---: | ---: |\n" in page
    assert "| compact | 20 | 20 |\n| Weave's | 2,000 |  |\n" in page
    assert "### One joins" in page
    assert "| seconds until all agree | 50 |" in page


def test_a_page_keeps_what_stands_before_its_section() -> None:
    page = replace_section("# Benchmarks\n\nothers\n", section([REST]))
    assert page.startswith("# Benchmarks\n\nothers\n\n" + MARK)
    assert replace_section(page, section([JOIN])) == replace_section("# Benchmarks\n\nothers\n", section([JOIN]))
    assert section_of(page) == section([REST])
    assert section_of("# Benchmarks\n") == ""


def test_a_line_tells_what_was_measured() -> None:
    assert line(JOIN).split()[:6] == ["50", "compact", "one", "joins", "30.0", "s"]
    assert "known   0.4  agreed    1.2" in line(JOIN)

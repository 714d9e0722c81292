"""Lines come out whole, however the bytes come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.errors import KubeAnswerError
from weavenet.kube.lines import Lines


@given(st.lists(st.binary().map(lambda raw: raw.replace(b"\n", b"")), max_size=5), st.integers(1, 7), st.booleans())
def test_lines_do_not_depend_on_where_the_bytes_were_cut(lines: list[bytes], size: int, is_cut: bool) -> None:
    whole = b"".join(line + b"\n" for line in lines) + (b"rest" if is_cut else b"")
    reader = Lines(1 << 20)
    found = [line for at in range(0, len(whole), size) for line in reader.feed(whole[at : at + size])]
    assert found == [line for line in lines if line.strip()]
    assert reader.has_rest is is_cut


def test_a_line_beyond_the_limit_is_refused_before_it_is_complete() -> None:
    reader = Lines(10)
    assert list(reader.feed(b"x" * 10)) == []
    with pytest.raises(KubeAnswerError, match="longer than"):
        list(reader.feed(b"x"))

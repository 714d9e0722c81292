import pytest

from weavenet.errors import LabError
from weavenet.lab import runtime


def test_the_first_address_of_a_result_is_the_pods() -> None:
    result = (
        '{"cniVersion":"1.1.0","ips":[{"address":"10.32.0.1/12","gateway":"10.32.0.2"},{"address":"10.40.0.1/12"}]}'
    )
    assert runtime.address_of(result) == "10.32.0.1/12"


@pytest.mark.parametrize("result", ["", "{", "{}", '{"ips":[]}'], ids=repr)
def test_a_result_without_an_address_is_refused(result: str) -> None:
    with pytest.raises(LabError, match="names no address"):
        runtime.address_of(result)


@pytest.mark.parametrize(
    ("output", "errors", "explained"),
    [
        (
            '{"cniVersion":"1.1.0","code":11,"msg":"agent away","details":"no socket"}',
            "",
            "agent away (no socket), code 11",
        ),
        ('{"code":7,"msg":"bad netconf"}', "noise", "bad netconf, code 7"),
        ("", "panic: oh dear\n", "panic: oh dear"),
        ("not JSON", "", "not JSON"),
        ("", "", "it printed nothing"),
    ],
    ids=["details", "no details", "crash", "garbage", "silence"],
)
def test_a_failure_is_told_in_the_plugins_words(output: str, errors: str, explained: str) -> None:
    assert runtime._explain(output, errors) == explained

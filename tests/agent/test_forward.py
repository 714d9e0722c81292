"""How much the forwarder asks for at once; what it does with that is tested on the kernel."""

from weavenet.agent.forward import Due


def test_it_asks_for_more_as_long_as_there_is_more() -> None:
    due = Due(16)
    asked = []
    for _ in range(6):
        asked.append(due.count)
        due.learn(due.count)
    assert asked == [1, 2, 4, 8, 16, 16]


def test_it_asks_for_what_there_was_when_there_was_less() -> None:
    due = Due(16)
    for got, wanted in ((1, 2), (2, 4), (3, 3), (1, 1), (0, 1)):
        due.learn(got)
        assert due.count == wanted

"""Only a DaemonSet that was there and has been deleted means "uninstall"."""

import pytest

from weavenet.agent.uninstall import NoAnswer, UninstallIntent
from weavenet.kube.follow import Changed, Gone, Listed
from weavenet.resources import ORPHAN_FINALIZER, DaemonSet, ObjectMeta


def daemonset(uid: str = "1", *, going: bool = False, finalizers: tuple[str, ...] = ()) -> DaemonSet:
    deleted = "2026-01-01T00:00:00Z" if going else None
    return DaemonSet(ObjectMeta("weave-net", uid=uid, deletion_timestamp=deleted, finalizers=finalizers))


DS, GOING, ANOTHER = daemonset(), daemonset(going=True, finalizers=("foregroundDeletion",)), daemonset("2")
ORPHANING = daemonset(going=True, finalizers=(ORPHAN_FINALIZER,))

CASES = [
    # what was told, what the last question brought, whether to uninstall
    pytest.param([], NoAnswer.NONE, False, id="an API that never answered"),
    pytest.param([], NoAnswer.ABSENT, False, id="never watched, and absent"),
    pytest.param([Listed(())], NoAnswer.ABSENT, False, id="an agent that no DaemonSet runs"),
    pytest.param([Listed((DS,))], DS, False, id="a rolling update, a drained node, a reboot"),
    pytest.param([Listed((DS,))], NoAnswer.NONE, False, id="a reboot while the API is away"),
    pytest.param([Listed((DS,)), Gone(DS)], NoAnswer.ABSENT, True, id="kubectl delete"),
    pytest.param([Listed((DS,)), Gone(DS)], NoAnswer.NONE, True, id="kubectl delete, the role went first"),
    pytest.param([Listed((DS,)), Gone(DS), Listed(())], NoAnswer.NONE, True, id="vanished between two lists"),
    pytest.param([Listed((DS,))], NoAnswer.ABSENT, True, id="deleted, and the watch had not said so yet"),
    pytest.param([Listed((DS,)), Changed(GOING)], GOING, True, id="deleted in the foreground"),
    pytest.param([Listed((GOING,))], NoAnswer.NONE, True, id="started while it was going"),
    pytest.param([Listed((DS,)), Gone(DS)], ANOTHER, False, id="made again, and the watch had not said so yet"),
    pytest.param([Listed((DS,)), Gone(DS), Changed(ANOTHER)], NoAnswer.NONE, False, id="made again"),
    pytest.param([Listed((DS,)), Gone(DS), Changed(ANOTHER), Gone(ANOTHER)], NoAnswer.NONE, True, id="and deleted"),
    pytest.param([Listed((DS,)), Changed(ORPHANING), Gone(DS)], NoAnswer.NONE, False, id="cascade=orphan"),
    pytest.param([Listed((DS,)), Changed(ORPHANING), Gone(DS)], NoAnswer.ABSENT, False, id="cascade=orphan, absent"),
    pytest.param(
        [Listed((DS,)), Changed(ORPHANING), Gone(DS), Changed(ANOTHER), Gone(ANOTHER)],
        NoAnswer.ABSENT,
        True,
        id="orphans that were adopted, and then deleted",
    ),
]


@pytest.mark.parametrize(("told", "answer", "wanted"), CASES)
def test_without_positive_evidence_everything_stays(
    told: list[object], answer: DaemonSet | NoAnswer, wanted: bool
) -> None:
    intent = UninstallIntent()
    for each in told:
        intent.hear(each)  # type: ignore[arg-type]
    assert intent.decide(answer) is wanted

"""Whether this agent is being uninstalled, or only stopped. Pure; docs/adr/0011-uninstall.md has the reasons.

A pod that gets SIGTERM is not told why: a rolling update, a drained node, a reboot and `kubectl delete -f` look alike.
So the agent watches its own DaemonSet while it runs. That the DaemonSet was there and has been deleted is the one thing
that means "uninstall"; one that is made again takes it back, and one that leaves its pods behind (cascade=orphan) never
meant it. When SIGTERM comes the API is asked once more, and its answer, if there is one, decides.

    never seen ──there──▶ present ──deleted──▶ wanted
                             ▲ ◀──there again──┘
                             └──going, leaves its pods──▶ never seen

Without positive evidence nothing is ever removed: no answer, a refusal, or a list that was empty from the beginning (an
agent that no DaemonSet runs) leave everything as it is. Roles are often deleted before the DaemonSet, and then a last
question is refused; what was seen in the watch, which outlives the role, decides.
"""

from enum import Enum

from weavenet.kube.follow import Changed, Gone, Listed, Told
from weavenet.resources import DaemonSet


class NoAnswer(Enum):
    """What the last question may bring other than a DaemonSet."""

    ABSENT = "the API says that there is none"
    NONE = "the API does not say"


class UninstallIntent:
    """What is known of the DaemonSet that runs us."""

    def __init__(self) -> None:
        """Know nothing."""
        self.was_seen = False
        self.is_wanted = False
        self._left_behind = ""  # the UID of one that goes and leaves its pods

    def hear(self, told: Told[DaemonSet]) -> None:
        """Take in what the API tells."""
        match told:
            case Listed(objects):
                for each in objects:
                    self._see(each)
                if not objects and self.was_seen:
                    self.is_wanted = True
            case Changed(changed):
                self._see(changed)
            case Gone(gone):
                self.is_wanted = self.was_seen and gone.metadata.uid != self._left_behind

    def _see(self, found: DaemonSet) -> None:
        if found.is_going and found.leaves_pods:
            self.was_seen, self.is_wanted = False, False
            self._left_behind = found.metadata.uid
        elif found.metadata.uid != self._left_behind:
            self.was_seen = True
            self.is_wanted = found.is_going

    def decide(self, answer: DaemonSet | NoAnswer) -> bool:
        """Say whether to uninstall, now that we are told to stop. Only to be asked if it was ever seen."""
        match answer:
            case NoAnswer.NONE:
                return self.is_wanted
            case NoAnswer.ABSENT:
                return self.was_seen
            case DaemonSet():
                self._see(answer)
                return self.is_wanted

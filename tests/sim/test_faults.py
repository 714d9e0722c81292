"""That runs are drawn as they say, replay, and that a failure of any kind is told."""

from collections import Counter

from weavenet.sim import faults
from weavenet.sim.faults import Run, draw_plan, play
from weavenet.sim.operators import Conduct

HOSTS = 5


def first_seed(conduct):
    return next(seed for seed in range(1, 1000) if draw_plan(seed, HOSTS).conduct is conduct)


def test_the_same_seed_gives_the_same_run():
    assert play(3, hosts=HOSTS) == play(3, hosts=HOSTS)


def test_other_seeds_give_other_runs():
    assert play(3, hosts=HOSTS)[1].trace != play(4, hosts=HOSTS)[1].trace


def test_every_conduct_and_clock_error_is_drawn():
    plans = [draw_plan(seed, HOSTS) for seed in range(1, 201)]
    assert set(Counter(plan.conduct for plan in plans)) == set(Conduct)
    assert {plan.clock_error_s > 0 for plan in plans} == {True, False}


def test_passwords_and_their_changes_are_drawn_and_a_changed_one_is_the_only_one_in_the_end():
    plans = [draw_plan(seed, HOSTS) for seed in range(1, 201)]
    assert {(plan.has_password, plan.rotation_s is not None) for plan in plans} == {
        (False, False),
        (True, False),
        (True, True),
    }
    run = Run(next(seed for seed in range(1, 201) if plans[seed - 1].rotation_s is not None), HOSTS)
    assert run.play().problem is None
    assert {key.name for host in run.world.running() for key in host.node.mesh.key_status()} == {"new"}


def test_every_conduct_of_an_operator_can_be_played():
    for conduct in Conduct:
        _, result = play(first_seed(conduct), hosts=HOSTS)
        assert result.problem is None


def test_a_careful_take_over_leaves_nothing_with_the_dead():
    for seed in range(1, 1000):
        if draw_plan(seed, HOSTS).conduct is not Conduct.CAREFUL or not draw_plan(seed, HOSTS).retire_rate:
            continue
        run = Run(seed, HOSTS)
        result = run.play()
        assert result.problem is None
        if run._retired:
            owners = {entry.peer for host in run.world.running() for entry in host.node.ipam.ring.entries}
            assert not owners & set(run._retired)
            return
    raise AssertionError("no careful operator has had anything to do")


def test_an_error_of_any_kind_is_told_with_its_seed(monkeypatch):
    def fail(_):
        raise KeyError("lost")

    monkeypatch.setattr(faults.Run, "_heal", fail)
    seed, result = play(3, hosts=HOSTS)
    assert seed == 3
    assert "KeyError: 'lost'" in result.problem

import torch

from fedcurv.global_state import cudnn, seeded


def test_a_seed_decides_the_block_and_nothing_after_it():
    before = torch.get_rng_state()
    with seeded(3):
        one = torch.randn(4)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3, torch.device("cpu")):
        other = torch.randn(4)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        assert torch.equal(one, torch.randn(4))
    assert torch.equal(one, other)


def test_only_the_named_settings_of_cudnn_change_and_they_are_put_back():
    names = ("enabled", "benchmark", "deterministic", "allow_tf32")
    before = {name: getattr(torch.backends.cudnn, name) for name in names}
    try:
        with cudnn(deterministic=True):
            inside = {name: getattr(torch.backends.cudnn, name) for name in names}
            raise KeyError
    except KeyError:
        pass
    assert inside == {**before, "deterministic": True}
    assert {name: getattr(torch.backends.cudnn, name) for name in names} == before
    assert before["enabled"]

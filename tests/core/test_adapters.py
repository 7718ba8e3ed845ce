import torch

from imachsr.core.adapters import make_projection


def test_a_projection_depends_on_its_generator_only_and_leaves_the_global_state_alone() -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        layer = make_projection(8, 5, torch.Generator().manual_seed(0))
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(layer.weight.detach())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], make_projection(8, 5, torch.Generator().manual_seed(1)).weight)


def test_a_projection_starts_within_its_bound_without_a_bias() -> None:
    layer = make_projection(16, 500, torch.Generator().manual_seed(0))
    bound = 1 / 16**0.5
    assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert float(layer.weight.detach().std()) * 3**0.5 / bound < 1.02  # uniform: bound / sqrt(3)
    assert layer.bias is not None
    assert not bool(layer.bias.any())


def test_a_projection_maps_each_pixel_alone() -> None:
    layer = make_projection(4, 3, torch.Generator().manual_seed(0))
    x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("dc,bchw->bdhw", layer.weight[:, :, 0, 0], x)
    torch.testing.assert_close(layer(x), expected)

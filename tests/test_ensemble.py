"""Moving averages and interpolations of weights, against figures computed by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from siglip_flowers.model.ensemble import WeightAverage, interpolate_weights


def make_model(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def copy_state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_moving_average_equals_the_sum_written_out(decay):
    model = make_model()
    average = WeightAverage(model, decay)
    expected = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    for update in range(12):
        change(model)
        average.on_step_end(model=model)
        rate = min(decay, (1 + update) / (10 + update))
        for name, parameter in model.named_parameters():
            expected[name] = rate * expected[name] + (1 - rate) * parameter.detach().numpy()
    assert set(average.weights) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    for name, weight in average.weights.items():
        np.testing.assert_allclose(weight.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.updates == 12


def test_applied_average_goes_away_bit_for_bit_even_after_an_error():
    model = make_model()
    average = WeightAverage(model, 0.9)
    change(model)
    average.on_step_end(model=model)
    own = copy_state(model)
    averaged = {name: weight.clone() for name, weight in average.weights.items()}

    def look():
        with average.applied_to(model), average.applied_to(model):
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, averaged.get(name, own[name]))
                assert (name in averaged) == parameter.requires_grad
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look()
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(averaged[name], weight) for name, weight in average.weights.items())


def test_saved_average_goes_on_as_if_it_had_never_stopped(tmp_path):
    model = make_model()
    average = WeightAverage(model, 0.9)
    for _ in range(3):
        change(model)
        average.on_step_end(model=model)
    average.save(tmp_path)
    other = WeightAverage(make_model(1), 0.9)
    other.load(tmp_path)
    assert other.updates == 3
    change(model)
    for one in (average, other):
        one.on_step_end(model=model)
    assert all(torch.equal(average.weights[name], other.weights[name]) for name in other.weights)


def test_interpolation_ends_in_the_two_models_bit_for_bit_and_is_their_mean_between():
    start, tuned = (make_model(seed).state_dict() for seed in (0, 1))
    for name in tuned:
        assert torch.equal(interpolate_weights(start, tuned, 0.0)[name], start[name])
        assert torch.equal(interpolate_weights(start, tuned, 1.0)[name], tuned[name])
        middle = interpolate_weights(start, tuned, 0.5)[name]
        torch.testing.assert_close(middle, (start[name] + tuned[name]) / 2)
        quarter = interpolate_weights(start, tuned, 0.25)[name]
        torch.testing.assert_close(quarter, 0.75 * start[name] + 0.25 * tuned[name])

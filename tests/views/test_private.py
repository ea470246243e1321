"""Pictures of private training say what they show."""

import numpy as np
import pytest

from cipherdm import views
from cipherdm.private import PrivacyBudget


def test_gradients_are_clipped_as_the_picture_says():
    gradients = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0], [0.6, 0.0]])
    figure = views.clipping_figure(gradients, clip=1.0, noise_multiplier=2.0)
    assert "of which 50% are longer than the clip of 1" in figure.get_label()
    assert "differ by 1, 0.5 of the noise's deviation" in figure.get_label()
    _, right = figure.axes
    others, total = (line.get_xydata()[0] for line in right.lines[1:])
    np.testing.assert_allclose(others, [0.9, -0.6])
    np.testing.assert_allclose(total, [1.5, 0.2])
    sums = right.lines[0].get_xydata()
    assert sums.std(0) == pytest.approx([2, 2], rel=0.15) and sums.mean(0) == pytest.approx(total, abs=0.4)
    widget = views.clipping_explorer(gradients)
    widget.set(clip=3.0)
    assert "of which 25% are longer than the clip of 3" in widget.shown.text


def test_epsilon_is_that_of_budgets():
    study = views.epsilon_study(rates=(1 / 30,), noises=(1.0, 2.0), steps=(10, 100))
    budget = PrivacyBudget(10, study.delta, 1 / 30, 100, 1.0)
    assert study.epsilons[0, 0] == pytest.approx([budget.spent(10), budget.spent()])
    figure = views.epsilon_figure(study, 0)
    assert f"from {budget.spent(10):.2g} to {budget.spent():.2g}" in figure.get_label()
    widget = views.epsilon_explorer(study)
    assert "noise multiplier 2" in widget.shown.text

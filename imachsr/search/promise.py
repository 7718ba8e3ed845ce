"""What is still to be expected of a search."""

import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def improvement_probability(values: Sequence[float], *, stopped: int, remaining: int, gain: float) -> float:
    """Estimated probability that at least one of the trials left is better than the best so far by ``gain``.

    The later half of the whole trials, which the sampler chose knowing the earlier half, is taken for a sample of a normal distribution; a trial to
    come is drawn from its predictive distribution, Student's t with k - 1 degrees of freedom about their mean m with the scale s sqrt(1 + 1/k), and
    has to exceed max(values) + gain; it is whole with the share that was. Independent draws: P = 1 - (1 - w p)^n.

    Args:
        values: Final values of whole sampled trials, larger is better, in the order in which they were proposed; at least 4.
        stopped: Sampled trials that did not get to their end.
        remaining: Trials to come, n >= 0.
        gain: >= 0, in the unit of the values.

    Returns:
        In [0, 1].
    """
    later = list(values[len(values) // 2 :])
    center, scale = statistics.fmean(later), statistics.stdev(later)
    wanted = max(values) + gain - center
    if scale == 0:
        return float(wanted <= 0 and remaining > 0)
    p = float(student.sf(wanted / (scale * (1 + 1 / len(later)) ** 0.5), len(later) - 1))
    whole = len(values) / (len(values) + stopped)
    return float(1 - (1 - whole * p) ** remaining)

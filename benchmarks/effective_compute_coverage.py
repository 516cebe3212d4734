"""How often the 95% interval of effective compute holds the truth, by simulation.

    python benchmarks/effective_compute_coverage.py                    # 1000 trials a row, about 8 minutes
    python benchmarks/effective_compute_coverage.py --trials 200       # a look

Laws and families are drawn with noise from a known law, refitted, and asked for an effective compute whose
true value is known; documents are drawn with a known mean rise. Prints a Markdown table. The last column
but one is the interval that the package reports; the last is what it replaced, measured on the same data.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from sae_lm_eval import world
from sae_lm_eval.scaling import DeltaCE, Family, Original, delta_from_documents
from sae_lm_eval.scaling.curve_estimates import checkpoint_estimate, family_estimates
from sae_lm_eval.scaling.estimate import Draws, Interval, log_fraction
from sae_lm_eval.scaling.fit import fit_parametric_law
from sae_lm_eval.scaling.law_estimates import law_relative
from sae_lm_eval.scaling.laws import ComputeLaw, Covariance, ParametricLaw, get_law

TRUE_SURFACE = get_law("besiroglu2024")
TRUE_FRONTIER = ComputeLaw(name="true", E=1.6, K=0.6 * 4.5e20**0.15, gamma=0.15)
DRAWS = 800
CHECKPOINT_DRAWS = 300  # each resamples the whole curve
LEVEL = 0.95
Trial = Callable[[np.random.Generator], Iterator[tuple[str, bool, bool | None]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    print(f"{options.trials} trials a row (a quarter for checkpoints), seed {options.seed}, level {LEVEL}\n")
    print("| simulated | asked for | covered | multivariate t on the raw parameters |")
    print("|---|---|---|---|")
    for name, trial in SCENARIOS.items():
        trials = options.trials // 4 if "checkpoints" in name else options.trials
        for question, covered, naive in coverage(trial, trials=trials, seed=options.seed):
            print(
                f"| {name} | {question} | {covered:.1%} | {'' if naive is None else f'{naive:.1%}'} |",
                flush=True,
            )
    print(f"\n{time.monotonic() - started:.0f} s")


def coverage(trial: Trial, *, trials: int, seed: int) -> list[tuple[str, float, float | None]]:
    """Share of trials whose interval holds the truth, for each question a trial asks."""
    rng = np.random.default_rng(seed)
    hits: dict[str, list[tuple[bool, bool | None]]] = {}
    for _ in range(trials):
        for question, covered, naive in trial(rng):
            hits.setdefault(question, []).append((covered, naive))
    return [
        (question, float(np.mean([hit for hit, _ in outcomes])), _mean([naive for _, naive in outcomes]))
        for question, outcomes in hits.items()
    ]


def _mean(values: list[bool | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def holds(interval: Interval | None, truth: float) -> bool:
    """Whether the interval holds the truth; an unbounded side holds everything on that side."""
    if interval is None:
        return False
    return (interval.low or 0.0) <= truth <= (np.inf if interval.high is None else interval.high)


def noise(rng: np.random.Generator, n: int, *, heavy: bool) -> np.ndarray:
    """Unit-variance noise: normal, or Student's t with four degrees of freedom."""
    return rng.standard_t(4, n) / np.sqrt(2) if heavy else rng.standard_normal(n)


def surface(params: np.ndarray, tokens: np.ndarray, *, sigma: float, heavy: bool = False) -> Trial:
    """A law of N and D fitted to runs whose log loss carries noise sigma."""
    assert isinstance(TRUE_SURFACE, ParametricLaw)
    truth = TRUE_SURFACE
    originals = {"1B, 20B tokens": (1e9, 2e10), "2.8B, 300B tokens": (2.8e9, 3e11)}

    def trial(rng: np.random.Generator) -> Iterator[tuple[str, bool, bool | None]]:
        loss = truth.loss(params, tokens) * np.exp(sigma * noise(rng, len(params), heavy=heavy))
        law = fit_parametric_law(params, tokens, loss)
        for name, (n, d) in originals.items():
            original = Original(params=n, tokens=d)
            for rise in (0.05, 0.3):
                delta = DeltaCE(value=rise)
                fixed = Draws.from_delta(delta, n=DRAWS, level=LEVEL, rng=rng)
                expected = law_relative(dataclasses.replace(truth, covariance=None), original, fixed)
                estimates = law_relative(law, original, fixed)
                naive = raw_surface(law, n, d, rise, fixed)
                for index, what in enumerate(("compute", "parameters", "tokens")):
                    if what == "compute" or rise == 0.3:
                        target = expected[index].fraction or np.nan
                        question = f"effective {what}, {name}, delta CE {rise}"
                        yield question, holds(estimates[index].interval, target), holds(naive[index], target)

    return trial


def frontier(n: int, *, sigma: float, heavy: bool = False, member: int = -2) -> Trial:
    """A family of n models along a frontier; one is the original, asked by fit and interpolation."""
    truth = TRUE_FRONTIER
    compute = np.geomspace(1e19, 2e22, n)

    def trial(rng: np.random.Generator) -> Iterator[tuple[str, bool, bool | None]]:
        loss = truth.optimal_loss(compute) * np.exp(sigma * noise(rng, n, heavy=heavy))
        family = Family(name="simulated", kind="family", models=("?",) * n, compute=compute, loss=loss)
        baseline = float(loss[member])
        own = truth.optimal_flops(baseline - truth.E)  # the compute that really buys the original's loss
        for fraction in (0.7, 0.2, 0.03):
            spliced = float(truth.optimal_loss(own * fraction))
            delta = DeltaCE(value=spliced - baseline, baseline=baseline)
            fixed = Draws.from_delta(delta, n=DRAWS, level=LEVEL, rng=rng)
            fitted, between = family_estimates(family, Original(), fixed)
            law = family.fit
            naive = None if law is None else holds(raw_frontier(law, baseline, delta.value, fixed), fraction)
            yield f"family fit, true value {fraction}", holds(fitted.interval, fraction), naive
            if between.fraction is not None:  # pooling may leave the baseline beyond the curve's end
                yield f"family interpolation, true value {fraction}", holds(between.interval, fraction), None

    return trial


def course(tokens: np.ndarray, *, sigma: float) -> Trial:
    """Checkpoints of one run: a warm-up, a power law, and the drop of an annealed end."""

    def true_loss(at: np.ndarray) -> np.ndarray:
        return 1.9 + 40 * at**-0.18 + 2 * np.exp(-at / 4e8) - 0.06 * (at / 3e11) ** 3

    def trial(rng: np.random.Generator) -> Iterator[tuple[str, bool, bool | None]]:
        loss = true_loss(tokens) * np.exp(sigma * rng.standard_normal(len(tokens)))
        models = ("?",) * len(tokens)
        run = Family(name="run", kind="checkpoints", models=models, compute=tokens, loss=loss, unit="tokens")
        for share in (0.7, 0.2, 0.03):
            ends = true_loss(np.array([3e11, 3e11 * share]))
            delta = DeltaCE(value=float(ends[1] - ends[0]))
            estimate = checkpoint_estimate(run, Draws.from_delta(delta, n=CHECKPOINT_DRAWS, level=LEVEL, rng=rng))
            yield f"checkpoints, true value {share}", holds(estimate.interval, share), None

    return trial


def documents(n: int, *, refit: bool) -> Trial:
    """Skewed documents with a true mean rise, under the true law, or one refitted to 36 runs."""
    assert isinstance(TRUE_SURFACE, ParametricLaw)
    truth = dataclasses.replace(TRUE_SURFACE, covariance=None)
    params, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 2e11, 6)))
    original = Original(params=1e9, tokens=2e10)
    rise = 0.15

    def trial(rng: np.random.Generator) -> Iterator[tuple[str, bool, bool | None]]:
        lengths = np.ceil(rng.lognormal(5.5, 0.8, n))
        per_token = rng.lognormal(np.log(rise) - 0.5 * 0.7**2, 0.7, n) + rng.normal(0, 0.4 / np.sqrt(lengths))
        base = 3.0 * lengths
        delta = delta_from_documents(baseline_nats=base, spliced_nats=base + per_token * lengths, tokens=lengths)
        law = truth
        if refit:
            law = fit_parametric_law(
                params, tokens, truth.loss(params, tokens) * np.exp(0.01 * rng.standard_normal(len(params)))
            )
        drawn = Draws.from_delta(delta, n=DRAWS, level=LEVEL, rng=rng)
        sure = DeltaCE(value=rise)
        target = law_relative(truth, original, Draws.from_delta(sure, n=100, level=LEVEL, rng=rng))[0].fraction
        estimate = law_relative(law, original, drawn)[0]
        yield "effective compute, delta CE 0.15", holds(estimate.interval, target or np.nan), None

    return trial


def raw_surface(law: ParametricLaw, n: float, d: float, rise: float, draws: Draws) -> list[Interval | None]:
    """The interval that follows from drawn parameters without linearisation."""
    assert isinstance(law.covariance, Covariance)
    deviations = draws.parameters(law.covariance)
    assert deviations is not None
    _, log_a, log_b, alpha, beta = (law.theta + deviations).T
    size, data = np.exp(log_a - alpha * np.log(n)), np.exp(log_b - beta * np.log(d))
    pairs = ((size + data, alpha * beta / (alpha + beta)), (size, alpha), (data, beta))
    return [raw_interval(rise, reducible, exponent, draws) for reducible, exponent in pairs]


def raw_frontier(law: ComputeLaw, baseline: float, rise: float, draws: Draws) -> Interval | None:
    deviations = draws.parameters(law.covariance)
    assert deviations is not None
    floor, _, gamma = (law.theta + deviations).T
    return raw_interval(rise, baseline - floor, gamma, draws)


def raw_interval(rise: float, reducible: np.ndarray, exponent: np.ndarray, draws: Draws) -> Interval | None:
    sound = (reducible > 0) & (exponent > 0)  # a floor above the baseline says: no compute at all
    logs = np.full(len(reducible), -np.inf)
    with np.errstate(over="ignore"):
        logs[sound] = log_fraction(rise, reducible[sound], exponent[sound])  # pyright: ignore[reportArgumentType]
    return draws.interval(logs, covers=("curve parameters",))


# Tokens of the embedded world's checkpoints, as shares of the whole: ever wider apart, and the first very early.
_SHARES = [row["tokens"] / world.world_facts()["family"][-1]["tokens"] for row in world.world_facts()["checkpoints"]]
WORLDLY = 3e11 * np.array([*_SHARES, 1.0])
_LADDER = (np.repeat([190e6, 370e6, 760e6, 1.3e9], 4), np.tile([1.0, 2, 5, 10], 4))
_GRID = tuple(axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 2e11, 6)))
SCENARIOS: dict[str, Trial] = {
    "law on 16 runs (4 sizes x 4 lengths), noise 0.5%": surface(_LADDER[0], 20 * _LADDER[0] * _LADDER[1], sigma=0.005),
    "law on 36 runs (6 x 6), noise 1%": surface(_GRID[0], _GRID[1], sigma=0.01),
    "law on 36 runs, heavy-tailed noise 1%": surface(_GRID[0], _GRID[1], sigma=0.01, heavy=True),
    "family of 5, noise 0.5%": frontier(5, sigma=0.005),
    "family of 7, noise 0.5%": frontier(7, sigma=0.005),
    "family of 8, noise 1%": frontier(8, sigma=0.01),
    "family of 8, noise 1%, original the largest": frontier(8, sigma=0.01, member=-1),
    "family of 8, heavy-tailed noise 1%": frontier(8, sigma=0.01, heavy=True),
    "family of 16, noise 0.5%": frontier(16, sigma=0.005),
    "family of 16, noise 0.5%, original the largest": frontier(16, sigma=0.005, member=-1),
    "20 checkpoints, noise 0.3%": course(np.geomspace(1e9, 3e11, 20), sigma=0.003),
    "60 checkpoints, noise 0.3%": course(np.geomspace(1e9, 3e11, 60), sigma=0.003),
    "12 checkpoints spaced as the world's, noise 0.3%": course(WORLDLY, sigma=0.003),
    "12 checkpoints spaced as the world's, noise 1%": course(WORLDLY, sigma=0.01),
    "10 documents, law known": documents(10, refit=False),
    "30 documents, law known": documents(30, refit=False),
    "300 documents, law known": documents(300, refit=False),
    "300 documents and law on 36 runs": documents(300, refit=True),
}

if __name__ == "__main__":
    main()

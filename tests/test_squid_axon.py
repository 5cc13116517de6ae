"""The squid axon of `flows/squid_axon.py`: against SciPy, and against what is known of it.

Sources: HH is Hodgkin & Huxley, J. Physiol. 117 (1952) 500-544. The bifurcations at 6.3
degrees: Hassard, J. Theor. Biol. 71 (1978) 401-420; Rinzel & Miller, Math. Biosci. 49 (1980)
27-59. Temperature: Hodgkin & Katz, J. Physiol. 109 (1949) 240-249; FitzHugh, J. Gen. Physiol.
49 (1966) 989-1005.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import squid_axon
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from flowmap import Block

Floats = NDArray[np.float64]
STEP_MS = 1 / 64
SAMPLE_MS = 0.25

# Currents (uA/cm2) by temperature (degrees Celsius), over the whole plane and at its edges:
# below, at and above the first spike; below and above repetitive firing; where the
# oscillation shrinks with current; where warmth lets nothing but the onset through.
# Left out, and `test_agrees_with_scipy` sees to it: rows with a peak within 1 mV of the line
# that defines a spike. Their count hangs on it, and no two integrators need agree there.
SAMPLE = {
    0.0: [0.0, 2.5, 110.0],
    6.3: [2.2, 2.3, 6.2, 6.3, 119.5],
    12.6: [1.0, 7.0, 100.0],
    18.5: [10.0, 60.0],
    24.0: [15.0, 45.0],
    30.9: [10.0, 119.5],
}


def simulate(currents: Any, temperatures: Any, duration_ms: float = 100.0) -> NDArray[np.void]:
    """Rows for pairs of current and temperature that need not form a grid."""
    pairs = np.broadcast_arrays(currents, temperatures)
    rows = np.zeros(pairs[0].size, dtype=squid_axon.ROW)
    rows["current"], rows["temperature"] = (pair.ravel() for pair in pairs)
    squid_axon.integrate(
        rows,
        steps=round(duration_ms / STEP_MS),
        step_ms=STEP_MS,
        sample_steps=round(SAMPLE_MS / STEP_MS),
    )
    return rows


def small(**changes: Any) -> dict[str, Any]:
    """Arguments of a sweep of 7 currents by 5 temperatures that takes no time."""
    plane = {"current_min": 0.0, "current_max": 60.0, "current_count": 7}
    plane |= {"temperature_min": 3.0, "temperature_max": 27.0, "temperature_count": 5}
    return plane | {"duration_ms": 20.0, "step_ms": STEP_MS} | changes


def fill(start: int, stop: int, **changes: Any) -> NDArray[np.void]:
    """The rows start:stop of the small sweep, as one block."""
    out = np.zeros(stop - start, dtype=squid_axon.ROW)
    assert squid_axon.squid_axon(out, Block(start, stop), **small(**changes)) is None
    return out


# The equations once more, from the paper and in its own convention: V = -u, I = -current.


def paper_rates(v: float) -> tuple[Floats, Floats]:
    """The alphas and betas of n, m, h as HH print them (12, 13, 20, 21, 23, 24)."""

    def linoid(x: float) -> float:
        return 1 / (1 + x / 2 + x * x / 6) if abs(x) < 1e-5 else x / math.expm1(x)

    alphas = (0.1 * linoid((v + 10) / 10), linoid((v + 25) / 10), 0.07 * math.exp(v / 20))
    last = 1 / (math.exp((v + 30) / 10) + 1)
    betas = (0.125 * math.exp(v / 80), 4 * math.exp(v / 18), last)
    return np.array(alphas), np.array(betas)


def paper_slope(y: Floats, current: float, temperature: float) -> Floats:
    """HH 26, 7, 15, 16 for (V, n, m, h)."""
    v, n, m, h = y
    alphas, betas = paper_rates(v)
    ionic = 36 * n**4 * (v - 12) + 120 * m**3 * h * (v + 115) + 0.3 * (v + 10.613)
    gates = 3 ** ((temperature - 6.3) / 10) * (alphas * (1 - y[1:]) - betas * y[1:])
    return np.array([-current - ionic, *gates])


@dataclass
class Reference:
    """What SciPy makes of one membrane: all in u = -V, mV and ms."""

    crossings: Floats
    extremes: Floats
    trace: Floats

    @property
    def rate(self) -> float:
        """Spikes a second after the first quarter of 100 ms."""
        late = self.crossings[self.crossings >= 25.0]
        return 1000.0 / float(np.diff(late).mean()) if len(late) > 1 else 0.0


def reference(current: float, temperature: float) -> Reference:
    """Integrate 100 ms with an eighth-order method whose error is beyond question here."""

    def crossing(_: float, y: Floats) -> float:
        return float(-y[0] - 50.0)

    def extreme(_: float, y: Floats) -> float:
        return float(paper_slope(y, current, temperature)[0])

    crossing.direction = 1.0  # type: ignore[attr-defined] # SciPy's way to say: upwards
    alphas, betas = paper_rates(0.0)
    solution = solve_ivp(
        lambda _, y: paper_slope(y, current, temperature),
        (0.0, 100.0),
        np.array([0.0, *(alphas / (alphas + betas))]),
        method="DOP853",
        t_eval=np.arange(64) * SAMPLE_MS,
        events=[crossing, extreme],
        rtol=1e-10,
        atol=1e-11,
    )
    assert solution.t_events is not None
    assert solution.y_events is not None
    peaks = [-y[0] for y in solution.y_events[1]]
    return Reference(solution.t_events[0], np.array([0.0, *peaks]), -solution.y[0])


@pytest.fixture(scope="module")
def sample() -> list[Any]:
    """The rows of SAMPLE as the script computes them, all in one go."""
    pairs = [(i, t) for t, currents in SAMPLE.items() for i in currents]
    return list(simulate(*np.transpose(pairs)))


@pytest.mark.parametrize(
    "index", range(sum(map(len, SAMPLE.values()))), ids=lambda index: f"row{index}"
)
def test_agrees_with_scipy(sample: list[Any], index: int) -> None:
    """Counts are equal, times and voltages within the step's measured error, with room."""
    row = sample[index]
    exact = reference(row["current"], row["temperature"])
    assert np.abs(exact.extremes - 50.0).min() > 1.0, "grazes the line: choose another row"
    assert row["spikes"] == len(exact.crossings)
    if row["spikes"]:
        assert row["latency"] == pytest.approx(exact.crossings[0], abs=0.002)
    else:
        assert math.isnan(row["latency"])
    assert row["rate"] == pytest.approx(exact.rate, abs=0.02)
    np.testing.assert_allclose(row["trace"], exact.trace, rtol=0, atol=0.03)
    # An extreme may fall between two steps: a sharp peak in the warm up to 0.5 mV.
    lowest = min(exact.extremes.min(), row["trace"].min())
    assert row["minimum"] == pytest.approx(lowest, abs=0.02)
    if row["spikes"]:
        assert -0.6 < row["maximum"] - exact.extremes.max() < 0.02


@pytest.mark.parametrize("u", [-12.0, 0.0, 9.0, 24.0, 50.0, 115.0])
def test_rates_are_the_printed_ones(u: float) -> None:
    """Opening and closing rates equal HH's formulas at the negative voltage."""
    both = np.array(squid_axon.rates(np.array([u])))[:, :, 0]
    np.testing.assert_allclose(both, paper_rates(-u), rtol=1e-12)


@pytest.mark.parametrize(("gate", "u", "limit"), [(0, 10.0, 0.1), (1, 25.0, 1.0)])
def test_rates_where_the_formula_is_zero_by_zero(gate: int, u: float, limit: float) -> None:
    """At 10 and 25 mV the opening rates are their limits exactly, and smooth around them."""
    around = u + np.array([-1e-3, -1e-9, 0.0, 1e-9, 1e-3])
    rate = squid_axon.rates(around)[0][gate]
    assert rate[2] == limit
    np.testing.assert_allclose(rate, limit * (1 + (around - u) / 20), rtol=1e-8)


def test_rests_without_current() -> None:
    """With no current it stays within 0.01 mV: the printed leak is not balanced exactly."""
    rows = simulate(0.0, [0.0, 6.3, 30.0], duration_ms=200.0)
    assert np.isnan(rows["latency"]).all()
    assert rows["minimum"].min() > -0.01
    assert rows["maximum"].max() < 0.01


def test_where_firing_starts() -> None:
    """At 6.3 degrees a step gives one spike from 2.24 on, a lasting train from 6.26 on.

    6.26 uA/cm2 is where stable and unstable periodic solutions meet (Rinzel & Miller): below
    it there is no train to settle on; above it, the jump from rest lands on the stable one,
    although rest too is stable up to 9.78.
    """
    currents = [2.20, 2.27, 6.20, 6.25, 6.27, 6.30, 9.0]
    rows = simulate(currents, 6.3, duration_ms=600.0)
    none, one, *few, just, more, many = rows
    assert none["spikes"] == 0
    assert one["spikes"] == 1
    assert all(1 < row["spikes"] < 10 and row["rate"] == 0 for row in few)
    assert 50 < just["rate"] < more["rate"] < many["rate"] < 70
    assert just["spikes"] >= math.floor(0.59 * just["rate"]), "to the very end"


@pytest.mark.parametrize(("current", "sign"), [(9.7754, 1), (154.5224, -1)])
def test_where_the_steady_state_loses_stability(current: float, sign: int) -> None:
    """At 6.3 degrees it does at 9.775 and regains it at 154.522 uA/cm2, both by Hopf."""

    def growth(injected: float) -> float:
        def at(u: float) -> Floats:
            opening, closing = squid_axon.rates(np.array([u]))
            return np.concatenate([[[u]], opening / (opening + closing)])

        def slope(state: Floats) -> Floats:
            derivative: Floats = squid_axon.slope(state, np.array([injected]), np.ones(1))
            return derivative[:, 0]

        rest = at(brentq(lambda u: slope(at(u))[0], 0.0, 40.0, xtol=1e-12))
        nudges = 1e-6 * np.eye(4)[:, :, np.newaxis]
        columns = [(slope(rest + d) - slope(rest - d)) / 2e-6 for d in nudges]
        values = np.linalg.eigvals(np.transpose(columns))
        first = values[values.real.argmax()]
        assert abs(first.imag) > 0.1, "a pair of complex eigenvalues crosses"
        return float(first.real)

    assert sign * growth(current - 0.002) < 0 < sign * growth(current + 0.002)


def test_warmth_raises_the_threshold() -> None:
    """A long step needs more current for its first spike, the warmer it is (FitzHugh)."""
    currents = np.arange(1.0, 13.0, 0.25)
    thresholds = [
        currents[simulate(currents, t, duration_ms=50.0)["spikes"] > 0].min()
        for t in (1.0, 6.3, 12.0, 18.0)
    ]
    assert np.all(np.diff(thresholds) > 0)


def test_warmth_narrows_spikes() -> None:
    """Width at half height falls with every degree; in the cold nearly by the Q10 of 3."""
    temperatures = np.arange(0.0, 25.0, 1.0)
    current = np.full(len(temperatures), 20.0)
    speed = squid_axon.temperature_speed(temperatures)
    state = squid_axon.resting_state(len(temperatures))
    voltages = [state[0]]
    for _ in range(15 * 128):
        state = squid_axon.advance(state, current, speed, 1 / 128)
        voltages.append(state[0])
    widths = np.array([half_width(v) for v in np.transpose(voltages)])
    assert np.all(np.diff(widths) < 0)
    assert 2.7 < widths[0] / widths[10] < 3.0


def half_width(voltage: Floats) -> float:
    """Steps during which the highest peak is above half its height, by interpolation."""
    half, peak = voltage.max() / 2, int(voltage.argmax())
    up = int(np.flatnonzero(voltage[:peak] < half)[-1])
    down = peak + int(np.flatnonzero(voltage[peak:] < half)[0])
    start = up + (half - voltage[up]) / (voltage[up + 1] - voltage[up])
    end = down - (half - voltage[down]) / (voltage[down - 1] - voltage[down])
    return float(end - start)


def test_heat_blocks_firing() -> None:
    """Some current makes it fire up to 26 degrees, none from 28 on: spikes have failed."""
    currents, temperatures = np.meshgrid(np.arange(5.0, 121.0, 2.5), [6.3, 20, 26, 28, 33])
    rows = simulate(currents, temperatures).reshape(currents.shape)
    best = rows["rate"].max(axis=1)
    assert np.all(np.diff(best[:3]) > 0)
    assert np.all(best[3:] == 0)
    assert np.all(np.diff(rows["maximum"].max(axis=1)) < 0), "and onset spikes shrink"


def test_row_layout() -> None:
    """ROW is what the documentation says: 312 packed little-endian bytes."""
    names = ["current", "temperature", "spikes", "latency", "rate", "minimum", "maximum"]
    formats = ["<f8", "<f8", "<i8", "<f8", "<f8", "<f8", "<f8"]
    scalars = list(zip(names, formats, strict=True))
    assert squid_axon.ROW.descr == [*scalars, ("trace", "<f4", (64,))]
    assert squid_axon.ROW.itemsize == 312


def test_rows_follow_the_plane() -> None:
    """Currents vary fastest; both axes start and end where the arguments say."""
    rows = fill(0, 35)
    currents, temperatures = np.linspace(0.0, 60.0, 7), np.linspace(3.0, 27.0, 5)
    np.testing.assert_allclose(rows["current"], np.tile(currents, 5), rtol=1e-15)
    np.testing.assert_allclose(rows["temperature"], np.repeat(temperatures, 7), rtol=1e-15)
    assert rows["trace"][:, 0].max() == 0.0


def test_block_split_leaves_every_bit() -> None:
    """Any cut into blocks gives the same bytes: NumPy's vector tails make no difference."""
    whole = fill(0, 35, duration_ms=8.0).tobytes()
    for cuts in ([1, 2, 3], [8, 16, 24, 32], [17], list(range(1, 35))):
        edges = [0, *cuts, 35]
        parts = [fill(a, b, duration_ms=8.0) for a, b in itertools.pairwise(edges)]
        assert b"".join(part.tobytes() for part in parts) == whole


def test_buffer_address_leaves_every_bit() -> None:
    """A buffer that starts at an odd address is filled with the same bytes."""
    odd = np.zeros(35 * squid_axon.ROW.itemsize + 1, dtype=np.uint8)[1:].view(squid_axon.ROW)
    squid_axon.squid_axon(odd, Block(0, 35), **small())
    assert odd.tobytes() == fill(0, 35).tobytes()


def test_short_stimulus_leaves_the_trace_zero() -> None:
    """Samples after the end of the stimulus stay zero; a single row needs no axis."""
    one = {"current_min": 30.0, "current_count": 1, "temperature_count": 1}
    row = fill(0, 1, **one, duration_ms=5.0)[0]
    assert row["current"] == 30.0
    assert row["trace"][19] != 0.0
    assert not row["trace"][20:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature_count": 4}, r"rows 0:35 reach beyond the 7 x 4 combinations"),
        ({"step_ms": 0.03}, r"the stimulus is 20\.0 ms, .*choose a step that divides it"),
        ({"trace_step_ms": 0.001}, r"the trace's interval is 0\.001 ms"),
    ],
)
def test_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    """A block beyond the plane and a step that divides no span are named."""
    with pytest.raises(ValueError, match=message):
        fill(0, 35, **changes)


def test_spikes_are_timed_between_steps() -> None:
    """On a sine of known frequency, count, latency and rate come out right."""
    spikes = squid_axon.Spikes(2, settled_ms=25.0)
    time = np.arange(0.0, 100.0 + STEP_MS, STEP_MS)
    wave = np.array([100.0, 40.0])[:, np.newaxis] * np.sin(2 * np.pi * time / 10)
    for step in range(len(time) - 1):
        spikes.look(time[step], STEP_MS, wave[:, step], wave[:, step + 1])
    assert spikes.number.tolist() == [10, 0]
    assert spikes.first[0] == pytest.approx(10 / 12, abs=1e-4)
    assert np.isnan(spikes.first[1])
    np.testing.assert_allclose(spikes.rate(), [100.0, 0.0], rtol=1e-9)

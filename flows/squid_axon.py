"""The 1952 squid axon as a filler: each row of a record array is one run of the model.

The model is the space-clamped membrane of A. L. Hodgkin and A. F. Huxley, "A quantitative
description of membrane current and its application to conduction and excitation in nerve",
J. Physiol. 117 (1952) 500-544, in the following called HH. It gets a step of steady current
from rest, and each combination of current and temperature becomes one row.

**Units**: mV, ms, uA/cm2, mS/cm2, uF/cm2, degrees Celsius, spikes a second.

**Sign and zero of the voltage**: HH's V is the displacement from rest, negative when the
membrane is depolarised. Here it is minus that, u = -V: the depolarisation from rest, so that
a spike points upwards, rest is 0 mV, and HH's constants stand as printed but for their sign.
Add -65 mV for today's usual absolute potential. A positive current depolarises.

`flows/parameter_sweep.py` sweeps it under Prefect, `workflows/Snakefile` under Snakemake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

import flowmap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowmap.segments import Block

    Floats = NDArray[np.float64]

# HH table 3, signs turned as said above.
CAPACITANCE = 1.0  # uF/cm2
CONDUCTANCES = np.array([[36.0], [120.0], [0.3]])  # mS/cm2: potassium, sodium, leak
REVERSALS = np.array([[-12.0], [115.0], [10.613]])  # mV from rest, in the same order

# The six rates at 6.3 degrees are AMPLITUDE * form(SHIFT - u / SCALE), in 1/ms. The form is
# x / (exp(x) - 1) for the first two, exp(x) for the next three, 1 / (exp(x) + 1) for the last.
# Columns: HH's equation, amplitude (1/ms), shift (1), scale (mV).
RATES = np.array(
    [
        (12, 0.1, 1.0, 10.0),  # opening of n: 0.01 (10 - u) / (exp((10 - u) / 10) - 1)
        (20, 1.0, 2.5, 10.0),  # opening of m: 0.1 (25 - u) / (exp((25 - u) / 10) - 1)
        (23, 0.07, 0.0, 20.0),  # opening of h: 0.07 exp(-u / 20)
        (13, 0.125, 0.0, 80.0),  # closing of n: 0.125 exp(-u / 80)
        (21, 4.0, 0.0, 18.0),  # closing of m: 4 exp(-u / 18)
        (24, 1.0, 3.0, 10.0),  # closing of h: 1 / (exp((30 - u) / 10) + 1)
    ]
)
_, AMPLITUDE, SHIFT, SCALE = (column[:, np.newaxis] for column in RATES.T)

Q10 = 3.0  # HH's, of all six rates; the conductances stay as they are
Q10_ORIGIN = 6.3  # degrees Celsius, where Q10 makes no difference

# x + NEAR_ZERO is x for every x but 0, where it gives x / expm1(x) its limit, exactly 1.
NEAR_ZERO = 1e-300

# A spike is an upward crossing of this depolarisation, about half the height of a full one in
# the cold. That is a convention: with more current the oscillation shrinks without a jump,
# and at the edge where its peaks just touch the line the count hangs on the last digits.
SPIKE_MV = 50.0

# The rate counts what comes after this part of the stimulus, when the onset is over.
SETTLED = 0.25

TRACE_SAMPLES = 64

ROW = np.dtype(
    [
        ("current", "<f8"),  # uA/cm2, from t = 0 on
        ("temperature", "<f8"),  # degrees Celsius
        ("spikes", "<i8"),  # upward crossings of SPIKE_MV
        ("latency", "<f8"),  # ms from the onset to the first crossing; NaN without one
        ("rate", "<f8"),  # spikes/s: 1 / mean interval of the settled part; 0 without one
        ("minimum", "<f8"),  # mV from rest, over the steps
        ("maximum", "<f8"),  # mV from rest, over the steps
        ("trace", "<f4", (TRACE_SAMPLES,)),  # mV from rest, every trace_step_ms from t = 0
    ]
)


def rates(u: Floats) -> tuple[Floats, Floats]:
    """Opening and closing rates of the gates n, m, h at 6.3 degrees (HH 12, 13, 20-24).

    Only element by element and on C-contiguous arrays: so a value does not depend on its
    place in the array, nor on how the rows were cut into blocks. (With other strides NumPy
    may take another implementation of `exp`, and its last bit may differ.)

    `u` is in mV, float64, shape (rows,); each result in 1/ms, float64, shape (3, rows).
    """
    x = SHIFT - u / SCALE
    x[:2] += NEAR_ZERO
    rate = np.empty_like(x)
    np.expm1(x[:2], out=rate[:2])
    np.divide(x[:2], rate[:2], out=rate[:2])
    np.exp(x[2:], out=rate[2:])
    rate[5] += 1.0
    np.reciprocal(rate[5], out=rate[5])
    rate *= AMPLITUDE
    return rate[:3], rate[3:]


def resting_state(rows: int) -> Floats:
    """Rest, u = 0 with the gates to match: u (mV), n, m, h, float64, shape (4, rows)."""
    state = np.zeros((4, rows))
    opening, closing = rates(state[0])
    state[1:] = opening / (opening + closing)
    return state


def slope(state: Floats, current: Floats, speed: Floats) -> Floats:
    """Time derivative of the state: HH 26 for u, and 7, 15, 16 for the gates.

    Args:
        state: u (mV), n, m, h; float64, shape (4, rows).
        current: Injected, uA/cm2, float64, shape (rows,).
        speed: What temperature multiplies the rates by, float64, shape (rows,).

    Returns:
        The derivative, per ms, shape (4, rows).
    """
    gates = state[1:]
    n, m, h = gates
    opening, closing = rates(state[0])
    closing += opening
    closing *= gates
    opening -= closing
    flow_in = REVERSALS - state[0]
    flow_in *= CONDUCTANCES
    flow_in[0] *= (n * n) * (n * n)
    flow_in[1] *= m * m * m * h
    result = np.empty_like(state)
    np.multiply(opening, speed, out=result[1:])
    np.divide(flow_in[0] + flow_in[1] + flow_in[2] + current, CAPACITANCE, out=result[0])
    return result


def advance(state: Floats, current: Floats, speed: Floats, step_ms: float) -> Floats:
    """One step of the classical fourth-order Runge-Kutta method; arguments as in `slope`."""
    k = slope(state, current, speed)
    after = state + k * (step_ms / 6)
    for _ in range(2):
        k = slope(state + k * (step_ms / 2), current, speed)
        after += k * (step_ms / 3)
    after += slope(state + k * step_ms, current, speed) * (step_ms / 6)
    return after


def temperature_speed(temperature: Floats) -> Floats:
    """The factor of all rates at a temperature (degrees Celsius), 1 at 6.3."""
    return cast("Floats", np.power(Q10, (temperature - Q10_ORIGIN) / 10.0))


class Spikes:
    """Counts and times upward crossings of SPIKE_MV while the integration goes on.

    Args:
        rows: How many membranes there are; all of them start below SPIKE_MV.
        settled_ms: From when on spikes count for the rate.
    """

    def __init__(self, rows: int, settled_ms: float) -> None:
        self.settled_ms = settled_ms
        self.above = np.zeros(rows, dtype=bool)
        self.number, self.settled = np.zeros((2, rows), dtype=np.int64)
        self.first, self.settled_first, self.settled_last = np.full((3, rows), np.nan)

    def look(self, time_ms: float, step_ms: float, before: Floats, after: Floats) -> None:
        """Take note of the step from `time_ms` on, with these voltages around it."""
        above = after >= SPIKE_MV
        rows = np.flatnonzero(above > self.above)
        self.above = above
        if rows.size:
            low, high = before[rows], after[rows]
            self._add(rows, time_ms + step_ms * (SPIKE_MV - low) / (high - low))

    def _add(self, rows: NDArray[np.intp], time: Floats) -> None:
        self.number[rows] += 1
        self.first[rows] = np.fmin(self.first[rows], time)
        late = time >= self.settled_ms
        rows, time = rows[late], time[late]
        self.settled[rows] += 1
        self.settled_first[rows] = np.fmin(self.settled_first[rows], time)
        self.settled_last[rows] = time

    def rate(self) -> Floats:
        """Spikes a second: one over the mean interval of the settled part; 0 without one."""
        span = self.settled_last - self.settled_first
        rate = np.zeros(len(span))
        np.divide(1000.0 * (self.settled - 1), span, out=rate, where=self.settled > 1)
        return rate


def axis(low: float, high: float, count: int, index: NDArray[np.int64]) -> Floats:
    """The values at `index` among `count` equidistant ones, float64."""
    return low + (high - low) * index / max(count - 1, 1)


def whole_steps(span_ms: float, step_ms: float, what: str) -> int:
    """How many steps make a span; ValueError unless that is a whole number."""
    steps = round(span_ms / step_ms)
    if steps < 1 or abs(steps * step_ms - span_ms) > 1e-9 * span_ms:
        problem = f"{what} is {span_ms} ms, which is no whole number of steps of {step_ms} ms"
        raise ValueError(f"{problem}; choose a step that divides it")
    return steps


@flowmap.filler
def squid_axon(
    out: NDArray[np.void],
    block: Block,
    *,
    current_min: float,
    current_max: float,
    current_count: int,
    temperature_min: float,
    temperature_max: float,
    temperature_count: int,
    duration_ms: float,
    step_ms: float,
    trace_step_ms: float = 0.25,
) -> None:
    """Fill one block of the sweep: row `t * current_count + c` is temperature t, current c.

    Args:
        out: Zeroed rows of dtype ROW, shape (block.stop - block.start,).
        block: Which rows of the whole array these are.
        current_min: The first of equidistant current densities, uA/cm2.
        current_max: The last one.
        current_count: How many.
        temperature_min: The first of equidistant temperatures, degrees Celsius.
        temperature_max: The last one.
        temperature_count: How many.
        duration_ms: How long the current flows and is looked at.
        step_ms: The step of the integration. Beyond some 0.03 it is unstable in the warm.
        trace_step_ms: Between samples of the trace; those after the stimulus stay zero.

    Raises:
        ValueError: If the block reaches beyond the sweep, or a time is no whole number of
            steps.
    """
    if block.stop > current_count * temperature_count:
        raise ValueError(
            f"rows {block.start}:{block.stop} reach beyond the {current_count} x "
            f"{temperature_count} combinations of the sweep"
        )
    t, c = np.divmod(np.arange(block.start, block.stop), current_count)
    out["current"] = axis(current_min, current_max, current_count, c)
    out["temperature"] = axis(temperature_min, temperature_max, temperature_count, t)
    integrate(
        out,
        steps=whole_steps(duration_ms, step_ms, "the stimulus"),
        step_ms=step_ms,
        sample_steps=whole_steps(trace_step_ms, step_ms, "the trace's interval"),
    )


def integrate(out: NDArray[np.void], *, steps: int, step_ms: float, sample_steps: int) -> None:
    """Run every row of `out` (dtype ROW) from rest and fill in what came of it."""
    current = np.ascontiguousarray(out["current"])
    speed = temperature_speed(np.ascontiguousarray(out["temperature"]))
    state = resting_state(len(out))
    spikes = Spikes(len(out), SETTLED * steps * step_ms)
    minimum, maximum = state[0].copy(), state[0].copy()
    for step in range(steps):
        sample, rest = divmod(step, sample_steps)
        if not rest and sample < TRACE_SAMPLES:
            out["trace"][:, sample] = state[0]
        after = advance(state, current, speed, step_ms)
        spikes.look(step * step_ms, step_ms, state[0], after[0])
        np.minimum(minimum, after[0], out=minimum)
        np.maximum(maximum, after[0], out=maximum)
        state = after
    out["spikes"], out["latency"], out["rate"] = spikes.number, spikes.first, spikes.rate()
    out["minimum"], out["maximum"] = minimum, maximum

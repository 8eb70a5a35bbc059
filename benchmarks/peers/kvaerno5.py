"""The same training steps by diffrax's Kvaerno5, jitted; for an interpreter that has diffrax.

``python -m benchmarks.stiff --diffrax PYTHON`` runs this file with that interpreter. It prints,
for each system, accepted steps, milliseconds, the state at the end and the gradient.
"""

import json
import os
import sys
import time
from statistics import median

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import diffrax  # after the flags
import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)


def two_scales(t, y, log_r):
    """Section 4.4's equation."""
    return jnp.exp(log_r[0]) * (3.0 - y - 2.0 * jnp.exp(-t))


def robertson(t, y, log_rates):
    """Robertson's reactions."""
    slow, fast, back = jnp.exp(log_rates)
    first, last = back * y[1] * y[2] - slow * y[0], fast * y[1] ** 2
    return jnp.stack([first, -first - last, last])


SYSTEMS = {
    "two_scales": (two_scales, [1000.0], [0.0], [3.0], 15.0),
    "robertson": (robertson, [0.04, 3e7, 1e4], [1.0, 0.0, 0.0], [1.0, 4e-5, 1.0], 10.0),
}


def measure(name, tolerance, repeats):
    """Numbers of one system."""
    field, rates, y0, scale, t1 = SYSTEMS[name]

    def loss(log_rates):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Kvaerno5(),
            0.0,
            t1,
            None,
            jnp.array(y0),
            args=log_rates,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=1e-3 * tolerance),
            max_steps=4096,
        )
        y = solution.ys[-1]
        return (y / jnp.array(scale)).sum(), (y, solution.stats["num_accepted_steps"])

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    log_rates, seconds = jnp.log(jnp.array(rates)), []
    for _ in range(repeats + 1):  # the first one compiles
        start = time.perf_counter()
        (_, (y, n_steps)), gradient = jax.block_until_ready(step(log_rates))
        seconds.append(time.perf_counter() - start)
    return {
        "steps": int(n_steps),
        "ms": 1e3 * median(seconds[1:]),
        "y": y.tolist(),
        "gradient": gradient.tolist(),
    }


if __name__ == "__main__":
    tolerance, repeats = float(sys.argv[1]), int(sys.argv[2])
    print(json.dumps({name: measure(name, tolerance, repeats) for name in SYSTEMS}))

"""Numbers of scipy that src/probe/stats.rs is held against.

Run: python tools/goldens/probe_statistics.py     (from the repository's root; needs scipy and numpy)
"""

import json

import numpy as np
import scipy
from scipy import stats

rng = np.random.default_rng(0)
tails = [
    [t, nu, 2 * stats.t.sf(abs(t), nu)]
    for nu in [1, 2, 5, 11, 31, 127, 1000, 1e6]
    for t in [0.0, 0.1, 1.0, 1.96, -3.5, 8.0, 30.0]
]
quantiles = [
    [alpha, nu, stats.t.isf(alpha / 2, nu)]
    for nu in [1, 5, 31, 127, 1e4]
    for alpha in [0.9, 0.05, 0.0264, 1e-3, 9e-5, 1e-8]
]
samples = []
for n in [6, 12, 40, 128]:
    values = rng.standard_normal(n) * 0.01 + 0.004
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(0.95)
    samples.append({"values": values.tolist(), "p": test.pvalue, "low": low, "high": high})

golden = {
    "made_by": f"tools/goldens/probe_statistics.py, scipy {scipy.__version__}",
    "t_two_sided": tails,
    "t_quantile": quantiles,
    "normal_quantile": [[alpha, stats.norm.isf(alpha / 2)] for alpha in [0.5, 0.05, 1e-6]],
    "samples": samples,
}
with open("tests/golden/probe_statistics.json", "w") as file:
    json.dump(golden, file, indent=1)
    file.write("\n")

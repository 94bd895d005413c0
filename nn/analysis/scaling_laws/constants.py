"""Published laws, at the full precision that their authors gave.

Rounded constants are not these laws: for C = 5.76e23 Hoffmann's law with exponents rounded to
(.34, .28) puts 92.6 tokens on a parameter, with those below 58.9. Constants belong to a tokenizer,
a data set, a recipe and a way of counting parameters: never use them as a forecast for other runs.
"""

from __future__ import annotations

import math

# Hoffmann et al. 2022, arXiv:2203.15556, approach 3; logarithms from the paper's source.
HOFFMANN = {
    "E": math.exp(0.5267228),
    "A": math.exp(6.0073404),
    "alpha": 0.33917084,
    "B": math.exp(6.0179186),
    "beta": 0.2849083,
}
# Besiroglu et al. 2024, arXiv:2404.10102: approach 3 refitted to 240 points read off a figure. The
# published numbers are the limit delta -> 0 (least absolute deviation) of the stated objective.
BESIROGLU = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
# Kaplan et al. 2020, arXiv:2001.08361, equation 1.5; N without embeddings.
KAPLAN = {"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
# Muennighoff et al. 2023, arXiv:2305.16264, appendix A (C4).
MUENNIGHOFF = {
    "E": math.exp(0.6254804),
    "A": math.exp(6.255414),
    "B": math.exp(7.3049974),
    "alpha": 0.3526596,
    "beta": 0.3526596,
    "R_D": 15.387756,
    "R_N": 5.309743,
}
# Clark et al. 2022, arXiv:2202.01169, table 3; logarithms to base 10, D = 130e9 tokens.
CLARK = {
    "S-BASE": {
        "a": -0.082,
        "b": -0.108,
        "c": 0.009,
        "d": 1.104,
        "E_start": 1.847,
        "E_max": 314.478,
    },
    "RL-R": {"a": -0.083, "b": -0.126, "c": 0.012, "d": 1.111, "E_start": 1.880, "E_max": 469.982},
    "Hash": {"a": -0.087, "b": -0.136, "c": 0.012, "d": 1.157, "E_start": 4.175, "E_max": 477.741},
}
# Krajewski et al. 2024, arXiv:2402.07871, table 1 (64 experts' worth of expansion).
KRAJEWSKI = {
    "E": 0.47,
    "A": 18.1,
    "alpha": 0.115,
    "B": 30.8,
    "beta": 0.147,
    "g": 2.1,
    "gamma": 0.58,
}
# Kumar et al. 2024, arXiv:2411.04330, table 2; alpha = beta, integer quantisation. The authors
# fitted each exponential with an offset besides (0.3037, 1.4072, 2.4185), which their law omits.
KUMAR = {
    "E": 2.7648,
    "A": 4.299e3,
    "alpha": 0.4965,
    "B": 1.806e4,
    "beta": 0.4965,
    "gamma_w": 2.6745,
    "gamma_a": 2.2102,
    "gamma_kv": 0.9578,
}

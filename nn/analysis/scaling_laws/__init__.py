"""Scaling laws: fits, intervals, forecasts, in float64 with numpy and scipy alone.

In the order to read them:
    table                                     runs, and conventions of counting parameters
    flops, constants, rules                   what is counted, and what was published
    forms, effective, experts                 the laws
    solve                                     the one objective and the one optimiser
    envelope, isoflop, parametric             approaches 1, 2 and 3 of Hoffmann et al. 2022
    optimum                                   N*, D*, L* of a budget, the price of another choice
    identify, resampling, holdout, conventions, tuning, findings    how far to believe it all
    forecasts                                 runs to come, and when to stop planning
    annealing, noise_scale                    within one run
"""

from nn.analysis.scaling_laws.conventions import agreement as agreement
from nn.analysis.scaling_laws.conventions import side_by_side as side_by_side
from nn.analysis.scaling_laws.envelope import Curve as Curve
from nn.analysis.scaling_laws.envelope import fit_envelope as fit_envelope
from nn.analysis.scaling_laws.findings import Finding as Finding
from nn.analysis.scaling_laws.forecasts import allocation as allocation
from nn.analysis.scaling_laws.forecasts import forecast as forecast
from nn.analysis.scaling_laws.forecasts import may_stop as may_stop
from nn.analysis.scaling_laws.holdout import choose as choose
from nn.analysis.scaling_laws.holdout import delta_sweep as delta_sweep
from nn.analysis.scaling_laws.holdout import drop_k as drop_k
from nn.analysis.scaling_laws.holdout import influence as influence
from nn.analysis.scaling_laws.holdout import leave_future_out as leave_future_out
from nn.analysis.scaling_laws.isoflop import fit_isoflop as fit_isoflop
from nn.analysis.scaling_laws.optimum import Cost as Cost
from nn.analysis.scaling_laws.optimum import deadweight as deadweight
from nn.analysis.scaling_laws.optimum import optimal as optimal
from nn.analysis.scaling_laws.parametric import FORMS as FORMS
from nn.analysis.scaling_laws.parametric import Fit as Fit
from nn.analysis.scaling_laws.parametric import fit_parametric as fit_parametric
from nn.analysis.scaling_laws.resampling import Bootstrap as Bootstrap
from nn.analysis.scaling_laws.resampling import bootstrap as bootstrap
from nn.analysis.scaling_laws.table import Table as Table
from nn.analysis.scaling_laws.table import View as View
from nn.analysis.scaling_laws.tuning import under_tuned as under_tuned

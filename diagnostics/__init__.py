"""The mathematics: what is true of a model at one moment."""

from diagnostics.curvature.eigenpairs import Eigenpairs as Eigenpairs
from diagnostics.curvature.eigenpairs import top_eigenpairs as top_eigenpairs
from diagnostics.curvature.gram import GaussNewtonSpectrum as GaussNewtonSpectrum
from diagnostics.curvature.gram import gauss_newton_spectrum as gauss_newton_spectrum
from diagnostics.curvature.layer_curvature import LayerCurvature as LayerCurvature
from diagnostics.curvature.layer_curvature import layer_curvature as layer_curvature
from diagnostics.curvature.operator import Preconditioned as Preconditioned
from diagnostics.curvature.operators import EmpiricalFisher as EmpiricalFisher
from diagnostics.curvature.operators import Fisher as Fisher
from diagnostics.curvature.operators import GaussNewton as GaussNewton
from diagnostics.curvature.operators import Hessian as Hessian
from diagnostics.curvature.self_check import SelfCheck as SelfCheck
from diagnostics.curvature.self_check import self_check as self_check
from diagnostics.errors import DiagnosticsError as DiagnosticsError
from diagnostics.estimate import Estimate as Estimate
from diagnostics.learning_rate.effective import EffectiveLearningRates as EffectiveLearningRates
from diagnostics.learning_rate.effective import effective_learning_rates as effective_learning_rates
from diagnostics.objective import Objective as Objective
from diagnostics.quiet import quiet as quiet
from diagnostics.stability.sharpness import Stability as Stability
from diagnostics.stability.sharpness import sharpness as sharpness
from diagnostics.stability.sharpness import stability as stability
from diagnostics.stability.threshold import Threshold as Threshold
from diagnostics.stability.threshold import threshold as threshold
from diagnostics.units.activity import UnitActivity as UnitActivity
from diagnostics.units.activity import unit_activity as unit_activity

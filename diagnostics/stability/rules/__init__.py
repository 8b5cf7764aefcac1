"""What each optimizer does to a gradient, as far as linear stability needs to know: one file per family."""

from diagnostics.stability.rules.registry import NoStepRuleError as NoStepRuleError
from diagnostics.stability.rules.registry import step_rules as step_rules
from diagnostics.stability.rules.step_rule import Momentum as Momentum
from diagnostics.stability.rules.step_rule import StepRule as StepRule
from diagnostics.stability.rules.wrappers import unwrap_optimizer as unwrap_optimizer
from diagnostics.stability.rules.wrappers import wrappers_around as wrappers_around

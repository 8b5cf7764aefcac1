"""The instruments: attach to a training run or open a checkpoint, decide when to measure, write the run down."""

from probes.ascent import AscentSharpness as AscentSharpness
from probes.attention import AttentionHeads as AttentionHeads
from probes.batch_ladder import BatchLadder as BatchLadder
from probes.batch_sharpness import BatchSharpness as BatchSharpness
from probes.churn import Churn as Churn
from probes.gradient_alignment import GradientAlignment as GradientAlignment
from probes.gradient_curvature import GradientCurvature as GradientCurvature
from probes.gradient_flow import GradientFlow as GradientFlow
from probes.learning_rate import EffectiveLearningRate as EffectiveLearningRate
from probes.monitor import Monitor as Monitor
from probes.noise_scale import NoiseScale as NoiseScale
from probes.noise_stream import NoiseStream as NoiseStream
from probes.opposing import OpposingSignals as OpposingSignals
from probes.plasticity import Plasticity as Plasticity
from probes.ranks import FeatureRank as FeatureRank
from probes.run.reader import Run as Run
from probes.run.records import Record as Record
from probes.schedule import at as at
from probes.schedule import every as every
from probes.schedule import log_spaced as log_spaced
from probes.sharpening import Sharpening as Sharpening
from probes.sharpness import Sharpness as Sharpness
from probes.spectrum import Spectrum as Spectrum
from probes.streams.microbatches import watch_microbatches as watch_microbatches
from probes.streams.ranks import watch_ranks as watch_ranks
from probes.units import Units as Units

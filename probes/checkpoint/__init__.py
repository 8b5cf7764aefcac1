"""Opening checkpoints safely: what the file is, what is in it, and what its weights look like."""

from probes.checkpoint.contents import Checkpoint as Checkpoint
from probes.checkpoint.errors import CheckpointError as CheckpointError
from probes.checkpoint.errors import UnsafeCheckpointError as UnsafeCheckpointError
from probes.checkpoint.formats import Format as Format
from probes.checkpoint.load import load_checkpoint as load_checkpoint
from probes.checkpoint.sniff import sniff as sniff
from probes.checkpoint.weights import TensorSurvey as TensorSurvey
from probes.checkpoint.weights import survey as survey

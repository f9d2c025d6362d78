"""Errors and warnings of the package; none of them needs Lightning to be caught."""


class NoSiteError(ValueError):
    """Nothing in the model could be normalised, so insertion would change nothing."""


class PlanMismatchError(RuntimeError):
    """A plan, a checkpoint and a model do not describe the same structure."""


class NoNormError(ValueError):
    """The model holds no batch norm whose population statistics could be estimated."""


class BatchSizeError(ValueError):
    """A batch has too few values per channel for a variance."""


class NormOptionError(ValueError):
    """A norm cannot have these arguments, or has nothing to reduce where it is to go."""


class CheckpointedCallError(RuntimeError):
    """Gradient checkpointing would compute a call again where its inserted norm cannot be met."""


class NonFiniteError(ValueError):
    """Statistics came out as NaN or infinite, so the model's own were left as they were."""


class UnknownNameError(ValueError):
    """A study, arm or option of that name does not exist; the message names the near ones."""


class RunFolderError(RuntimeError):
    """A run folder or a data file cannot be used as it stands."""


class FoldingError(RuntimeError):
    """A folded model could not be made, or did not compute what the original computes."""


class NoEffectWarning(UserWarning):
    """A call that was meant to change or measure something found nothing to act on."""


class InsertionWarning(UserWarning):
    """An inserted norm will not behave as its user may expect."""


class StatisticsWarning(UserWarning):
    """Population or activation statistics are less reliable than they look."""


class FoldingWarning(UserWarning):
    """Some batch norms were not folded and still cost their time."""

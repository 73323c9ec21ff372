class PretrainedError(ValueError):
    """Why a folder of weights cannot be read or written: one sentence, or one a line."""

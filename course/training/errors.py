class TrainingError(Exception):
    """Something the user can mend; the message is one sentence that says what is wrong and what to do."""

"""The four training stages, their data and the evaluation. It imports the model; nothing imports it."""

"""One run of the notebooks: its parameters, paths, artefacts and results."""

"""The commands of python -m drvtopk, one a file. Each has `add(commands)` and a `run(arguments)` -> exit code."""

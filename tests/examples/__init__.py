"""drvtopk from inside other people's programs, run by the GPU tests: `python -m tests.examples.torch_decode`."""

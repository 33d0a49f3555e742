"""drvtopk in a host without Python: a program in C, and a driver that stands in for libcuda."""

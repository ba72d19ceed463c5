"""The process and its machine: signals, torchrun, threads and memory of torch, free space."""

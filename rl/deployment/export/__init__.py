"""`rlexport`: a policy as one file, for programs that need neither rltrain nor, as ONNX, torch."""
